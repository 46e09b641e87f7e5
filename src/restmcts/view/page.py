"""The page: its files as the server gives them out, and all of it as one file that needs no server.

The one file holds the style, the scripts and the data, fetches nothing, and lets nothing in but these scripts, by their
hashes. Its data are compressed and written in base64, in which no markup can hide.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from restmcts.findings import result_tables
from restmcts.report import load_runs, markdown, title
from restmcts.store import write_atomic
from restmcts.view.overview import overview
from restmcts.view.viewer import Viewer

STYLES = ["style.css"]
SCRIPTS = [
    "temml.min.js", "data.js", "text.js", "charts.js", "layout.js", "paint.js", "canvas.js",
    "overview.js", "questions.js", "details.js", "tree.js", "main.js",
]  # fmt: skip
"""in the order in which they build on each other"""
TREES_MIB = 12
"""how much of the trees the one file holds, compressed; those that do not fit are named as left out"""

_MARK_HEAD, _MARK_DATA = "<!-- head -->", "<!-- data -->"
_TREES_A_PIECE = 40


def as_json(value: Any) -> str:
    """JSON of plain ASCII. Raises ValueError for what is no JSON."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def served() -> bytes:
    """The page as the server gives it out: it asks for the rest."""
    head = [f'<link rel="stylesheet" href="static/{name}">' for name in STYLES]
    head += [f'<script defer src="static/{name}"></script>' for name in SCRIPTS]
    return _template().replace(_MARK_HEAD, "\n".join(head)).replace(_MARK_DATA, "").encode()


def write_page(outs: Sequence[str | Path], target: Path) -> None:
    """Write one file with all the page shows of a run; of several seeds of a run, their numbers together.

    Raises StoreError when a folder holds no results, or the file cannot be written.
    """
    write_atomic(target, page(outs))


def page(outs: Sequence[str | Path]) -> str:
    """The page as one file."""
    runs = load_runs(outs)
    found: dict[str, Any] = {"state": {"name": title(runs), "sets": []}, "overview": overview(runs)}
    pieces: list[str] = []
    if len(runs) == 1:
        viewer = Viewer(runs[0].out)
        try:
            viewer.refresh()
            found |= viewer.everything()
            found["trees"], pieces = _trees(viewer)
        finally:
            viewer.close()
    text = markdown(title(runs), result_tables(runs, places=False))
    blocks = [
        _block("data", _packed(found)),
        *(_block(f"trees-{number}", piece) for number, piece in enumerate(pieces)),
    ]
    blocks += [f"<script>{_static(name)}</script>" for name in SCRIPTS]
    blocks.append(f"<noscript><pre>{html.escape(text)}</pre></noscript>")
    styles = [_static(name) for name in STYLES]
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
    policy += f"style-src {_hashes(styles)}; script-src {_hashes([_static(name) for name in SCRIPTS])}"
    head = [f'<meta http-equiv="Content-Security-Policy" content="{policy}">']
    head += [f"<style>{style}</style>" for style in styles]
    named = _template().replace("<title>restmcts", f"<title>{html.escape(title(runs))} · restmcts")
    return named.replace(_MARK_HEAD, "\n".join(head)).replace(_MARK_DATA, "\n".join(blocks))


def _trees(viewer: Viewer) -> tuple[dict[str, dict[int, int]], list[str]]:
    """In which piece each tree is that the file has room for, by set and row; and the pieces.

    Questions are taken whole, with their trees of all sets, so that those can be set side by side.
    """
    where: dict[str, dict[int, int]] = {}
    pieces: list[str] = []
    left = TREES_MIB << 20
    for some in _by_pieces(viewer.questions()):
        piece = _packed([viewer.tree(name, row) for name, row in some])
        left -= len(piece)
        if left < 0:
            break
        for name, row in some:
            where.setdefault(name, {})[row] = len(pieces)
        pieces.append(piece)
    return where, pieces


def _by_pieces(questions: Sequence[Sequence[tuple[str, int]]]) -> Iterator[list[tuple[str, int]]]:
    some: list[tuple[str, int]] = []
    for trees in questions:
        some += trees
        if len(some) >= _TREES_A_PIECE:
            yield some
            some = []
    if some:
        yield some


# ---------------------------------------------------------------- files


@cache
def _static(name: str) -> str:
    return (resources.files("restmcts") / "view" / "static" / name).read_text("utf-8")


def _template() -> str:
    return _static("page.html")


def _file(name: str) -> Callable[[], bytes]:
    return lambda: _static(name).encode()


_KINDS = {"css": "text/css", "js": "text/javascript"}
FILES: dict[str, tuple[str, Callable[[], bytes]]] = {"/": ("text/html", served)} | {
    f"/static/{name}": (_KINDS[name.rpartition(".")[2]], _file(name)) for name in [*STYLES, *SCRIPTS]
}
"""what the server gives out besides data: path → kind and content"""


# ---------------------------------------------------------------- data in a file


def _packed(value: Any) -> str:
    return base64.b64encode(gzip.compress(as_json(value).encode(), mtime=0)).decode()


def _block(name: str, packed: str) -> str:
    return f'<script type="text/plain" id="{name}">{packed}</script>'


def _hashes(texts: Sequence[str]) -> str:
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

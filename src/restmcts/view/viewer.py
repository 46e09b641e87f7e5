"""What the page asks for: the state of a folder, the numbers of its run, the rows of a tree set, one tree.

Everything here is read from files. A thread of its own reads new trees as they appear; while nobody asks, it rests.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from restmcts.errors import RestmctsError, StoreError
from restmcts.lock import held
from restmcts.results import METRICS, load_run
from restmcts.store import BEGUN, LOCK, MANIFEST, SET_ASIDE, WHOLE
from restmcts.tasks.grade import Grader
from restmcts.view.detail import tree_detail
from restmcts.view.index import COLUMNS, TreeIndex
from restmcts.view.overview import overview
from restmcts.view.sets import find_sets, read_kinds

ROWS_AT_ONCE = 2000
_LOOK_EVERY, _REST_AFTER = 1.0, 30.0


class Viewer:
    """A folder as the page sees it. As a context manager it follows the folder in a thread of its own.

    Without that, call `refresh` to read what there is. Raises StoreError for a folder that holds neither results nor
    trees.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        if not self.out.is_dir():
            raise StoreError(f"no such folder: {self.out}; give the folder of a run (its --out)")
        self._indexes: dict[str, TreeIndex] = {}
        self._grader = Grader()
        self._overview: tuple[float, dict[str, Any]] = (-1.0, {})
        self._stopped, self._asked = threading.Event(), threading.Event()
        self._reading = threading.Lock()
        self._asked_at = time.monotonic()
        self._thread: threading.Thread | None = None
        self._find()
        if not self._indexes and not (self.out / METRICS).is_file() and not (self.out / LOCK).exists():
            raise StoreError(f"{self.out} holds neither results nor trees; give the folder of a run (its --out)")

    def __enter__(self) -> Viewer:
        self._thread = threading.Thread(target=self._follow, name="restmcts-view", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._asked.set()
        if self._thread is not None:
            self._thread.join()
        self.close()

    def close(self) -> None:
        """End the grader's process."""
        self._grader.close()

    # ------------------------------------------------------------------ what the page asks for

    def state(self) -> dict[str, Any]:
        """What there is and how far it has come; asked again and again while the page is open."""
        self._asked_at = time.monotonic()
        self._asked.set()
        return {
            "name": self.out.resolve().name,
            "running": held(self.out / LOCK),
            "measured": _changed(self.out / METRICS),
            "stages": self._stages(),
            "columns": COLUMNS,
            "sets": [_described(index) for index in list(self._indexes.values())],
        }

    def overview(self) -> dict[str, Any]:
        """See `overview.overview`; empty while nothing was measured."""
        changed = _changed(self.out / METRICS)
        if changed != self._overview[0]:
            found = {}
            with suppress(StoreError):  # a run that begins, or one whose files are being moved
                found = overview([load_run(self.out)]) if changed else {}
            self._overview = changed, found
        return self._overview[1]

    def rows(self, name: str, start: int = 0) -> dict[str, Any]:
        """Rows of a tree set from `start` on. Raises StoreError for a set that is not there."""
        version, rows = self._index(name).listed(start, ROWS_AT_ONCE)
        return {"version": version, "start": start, "rows": rows}

    def tree(self, name: str, row: int) -> dict[str, Any]:
        """One tree, see `detail.tree_detail`. Raises StoreError for one that is not there."""
        index = self._index(name)
        tree, labels = index.read(row)
        return {"set": name, "row": row, **tree_detail(tree, labels, index.set, self.out, self._grader)}

    def everything(self) -> dict[str, Any]:
        """The state and all rows, for a page that cannot ask for more."""
        rows = {name: {"version": index.version, "rows": index.rows} for name, index in self._indexes.items()}
        return {"state": {**self.state(), "running": False}, "rows": rows}

    def questions(self) -> list[list[tuple[str, int]]]:
        """For each question, the (set, row) of its trees; the sets measured last come first."""
        found: dict[str, list[tuple[str, int]]] = {}
        for name, index in reversed(self._indexes.items()):
            for row, columns in enumerate(index.rows):
                found.setdefault(columns[0], []).append((name, row))
        return list(found.values())

    def refresh(self) -> None:
        """Read all that is there now."""
        with self._reading:
            self._find()
            for index in self._indexes.values():
                while not index.update():
                    pass

    # ------------------------------------------------------------------ following the folder

    def _follow(self) -> None:
        while not self._stopped.is_set():
            with self._reading:  # one reader at a time: each goes on where the one before it stopped
                with suppress(OSError, RestmctsError):
                    self._find()
                whole = [index.update(0.2) for index in self._indexes.values()]
            if all(whole):
                self._asked.clear()
                resting = time.monotonic() - self._asked_at > _REST_AFTER
                self._asked.wait(None if resting else _LOOK_EVERY)
                self._stopped.wait(_LOOK_EVERY / 4)

    def _find(self) -> None:
        """Take in tree sets that are new, and let go of those that are gone."""
        sets = find_sets(self.out)
        fresh = [found for found in sets if found.name not in self._indexes]
        kinds = read_kinds(self.out) if fresh else {}
        indexes = {found.name: self._indexes.get(found.name) or TreeIndex(found, kinds) for found in sets}
        self._indexes = indexes

    def _index(self, name: str) -> TreeIndex:
        index = self._indexes.get(name)
        if index is None:
            raise StoreError(f"no trees are called {name!r} in {self.out}")
        return index

    def _stages(self) -> list[dict[str, Any]]:
        """The stages that are done or begun, those begun last."""
        found = []
        for mark in (MANIFEST, BEGUN):
            for path in sorted(self.out.rglob(mark), key=_changed):
                name = path.parent.relative_to(self.out).as_posix()
                if SET_ASIDE not in path.parts and not (mark == BEGUN and (path.parent / MANIFEST).exists()):
                    found.append({"name": self.out.resolve().name if name == WHOLE else name, "done": mark == MANIFEST})
        return found


def _described(index: TreeIndex) -> dict[str, Any]:
    found = index.set
    return {
        "name": found.name,
        "title": found.title,
        "pool": found.pool,
        "phase": found.phase,
        "mode": found.mode,
        "finished": found.finished,
        "trees": len(index.rows),
        "share": index.share,
        "unreadable": index.unreadable,
        "version": index.version,
    }


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

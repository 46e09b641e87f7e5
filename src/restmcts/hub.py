"""Models and data of a run, put on the model hub: private unless asked otherwise, and never more than is listed.

The token is the hub library's own (`hf auth login`, or HF_TOKEN); it is neither asked for nor shown here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from restmcts.cards import MARK, card, facts_of
from restmcts.errors import ConfigError, HubError, StoreError
from restmcts.evaluate import TREES
from restmcts.manifest import CARD
from restmcts.models import PROMPT_FILE
from restmcts.results import METRICS, load_run
from restmcts.rows import LABELS, PAIRS, POLICY_ROWS, REWARDS, VALUE_ROWS
from restmcts.tables import Table

What = Literal["policy", "value", "data"]
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_ROUND = re.compile(r"round-(\d+)")
MODEL_FILES = (
    "*.safetensors *.safetensors.index.json config.json generation_config.json tokenizer.json tokenizer_config.json "
    f"tokenizer.model special_tokens_map.json added_tokens.json vocab.json merges.txt chat_template.jinja {PROMPT_FILE}"
).split()
"""what a model is made of; the marks of its stage stay here, for they tell of this machine"""
DATA_FILES = (TREES, LABELS, POLICY_ROWS, VALUE_ROWS, PAIRS, REWARDS)
_LOOKUP_SECONDS = 5.0


@dataclass(slots=True)
class Upload:
    """What is to become one repository: files by their names there, each a file here or its content."""

    what: What
    repo: str
    folder: Path
    files: dict[str, Path | bytes] = field(default_factory=dict)

    @property
    def repo_type(self) -> str:
        return "dataset" if self.what == "data" else "model"

    @property
    def url(self) -> str:
        return f"{'datasets/' if self.what == 'data' else ''}{self.repo}"

    @property
    def size(self) -> int:
        return sum(map(size_of, self.files.values()))


def size_of(content: Path | bytes) -> int:
    """Bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


# ---------------------------------------------------------------- what


def uploads(source: Path, repo: str, what: Sequence[str] | None = None, round: int | None = None) -> list[Upload]:
    """What `restmcts push` would put where.

    Of a run the last policy, or what is named: policy, value, data; of several, the value model goes to REPO-value and
    the data set to REPO-data. Of a folder what it holds. Raises ConfigError for names that cannot be, StoreError
    where there is nothing of the kind.
    """
    if _REPO.fullmatch(repo) is None or ".." in repo or "--" in repo:
        raise ConfigError(f"{repo!r} is no name of a repository; give owner/name")
    if not source.is_dir():
        raise StoreError(f"no such folder: {source}; give a run, or the folder of a model or of trees or rows")
    if not (source / METRICS).is_file():
        return [_of_folder(source, repo, what)]
    kinds = _kinds(what or ["policy"])
    named = {kind: repo if len(kinds) == 1 or kind == "policy" else f"{repo}-{kind}" for kind in kinds}
    return [_data(source, named[k], round) if k == "data" else _model(source, named[k], k, round) for k in kinds]


def _kinds(what: Iterable[str]) -> list[What]:
    known: tuple[What, ...] = get_args(What)
    asked = list(dict.fromkeys(what))
    wrong = next((kind for kind in asked if kind not in (*known, "all")), None)
    if wrong is not None:
        raise ConfigError(f"--what {wrong!r}: it must be {', '.join(known)} or all")
    return [kind for kind in known if kind in asked or "all" in asked]


def _of_folder(folder: Path, repo: str, what: Sequence[str] | None) -> Upload:
    facts = facts_of(folder)
    if facts is not None:
        kind: What = "value" if facts.is_value else "policy"
    elif any((folder / name).is_file() for name in DATA_FILES):
        kind = "data"
    else:
        raise StoreError(f"{folder} holds no model that restmcts trained, and no trees or rows; give another folder")
    if what and _kinds(what) != [kind]:
        raise ConfigError(f"--what {', '.join(what)}: {folder} holds {'data' if kind == 'data' else f'a {kind} model'}")
    return _data(folder, repo, None) if kind == "data" else _model_files(folder, repo, kind)


def _model(run: Path, repo: str, kind: What, round: int | None) -> Upload:
    """The last model of a kind that the run trained, by the end of `round`."""
    trained = [
        record
        for record in load_run(run).records
        if record["kind"] == kind and not record["metrics"].get("kept") and (round is None or record["phase"] <= round)
    ]
    if not trained:
        by = "" if round is None else f" by round {round}"
        raise StoreError(f"{run} has trained no {kind} model{by}; go on with restmcts run, or choose with --what")
    return _model_files(run / trained[-1]["stage"], repo, kind)


def _model_files(folder: Path, repo: str, kind: What) -> Upload:
    made = Upload(kind, repo, folder)
    for pattern in MODEL_FILES:
        made.files |= {path.name: path for path in sorted(folder.glob(pattern)) if path.is_file()}
    if not any(name.endswith(".safetensors") for name in made.files):
        raise StoreError(f"{folder} holds no weights; train the model again")
    own = folder / CARD
    if own.is_file() and MARK not in own.read_text("utf-8", errors="replace"):
        made.files[CARD] = own  # somebody's own words
    else:
        made.files[CARD] = (card(folder, repo) or f"# {repo}\n").encode()
    return made


def _data(source: Path, repo: str, round: int | None) -> Upload:
    """Trees, labels and rows of a run, round by round, or of the folder of one stage; never those of evaluations."""
    made = Upload("data", repo, source)
    for name in DATA_FILES:
        if (source / name).is_file():
            made.files[name] = source / name
        for path in sorted(source.glob(f"round-*/*/{name}"), key=lambda path: path.parent.name == "completions"):
            number = _ROUND.fullmatch(path.parents[1].name)
            if number is not None and (round is None or int(number[1]) == round):  # completed trees hold the searched
                made.files[f"{path.parents[1].name}/{name}"] = path
    if not made.files:
        raise StoreError(f"{source} holds no trees or rows{'' if round is None else f' of round {round}'}")
    made.files = {**dict(sorted(made.files.items())), CARD: _data_card(made).encode()}
    return made


_SAYS = {
    TREES: "search trees, one a question: flat records, a column for each property of a node",
    LABELS: "what the verified trees say about their nodes: m, r, w, v of ReST-MCTS*, Eqs. 1 and 2",
    POLICY_ROWS: "right solutions, for the policy to imitate",
    VALUE_ROWS: "solutions with v of every step, for the value model",
    PAIRS: "two ways to go on, the first better than the second",
    REWARDS: "what online training rewarded solutions with",
}


def _data_card(made: Upload) -> str:
    """The data set's card, in which every kind of file is a configuration of its own."""
    kinds = [name for name in DATA_FILES if any(path.endswith(name) for path in made.files)]
    configs = [
        {"config_name": Path(name).stem, "data_files": sorted(p for p in made.files if Path(p).name == name)}
        for name in kinds
    ]
    head = {"tags": ["restmcts", "rest-mcts", "process-supervision"], "configs": configs}
    lines = "\n".join(f"| `{Path(name).stem}` | {_SAYS[name]} |" for name in kinds)
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False, width=120)}---\n\n# {made.repo}\n\n"
        "Search trees of self-training and what was made of them.\n\n"
        f"| configuration | holds |\n|---|---|\n{lines}\n\n"
        f"```python\nfrom datasets import load_dataset\n\nrows = load_dataset({made.repo!r}, "
        f"{Path(kinds[0]).stem!r})['train']\n```\n"
    )


def listing(made: Sequence[Upload], public: bool) -> list[Table]:
    """What would be uploaded, with sizes."""
    tables = []
    for upload in made:
        seen = "public" if public else "private"
        table = Table(f"{upload.url} ({upload.repo_type}, {seen})", ["file", "size", "from"], words=True)
        for name, content in upload.files.items():
            here = "made for the hub" if isinstance(content, bytes) else str(content)
            table.rows.append([name, shown_size(size_of(content)), here])
        table.rows.append(["all", shown_size(upload.size), str(upload.folder)])
        tables.append(table)
    return tables


def shown_size(size: float) -> str:
    """Bytes in a unit that suits them."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


# ---------------------------------------------------------------- there


def push(made: Sequence[Upload], *, public: bool = False, message: str | None = None, quiet: bool = False) -> list[str]:
    """Upload, each repository in one commit; returns the addresses. The hub's library shows progress unless `quiet`.

    A repository that is there and public is refused unless `public`, before anything is sent. Raises HubError.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi, get_token
        from huggingface_hub.utils import disable_progress_bars
    except ModuleNotFoundError:
        raise HubError("push needs huggingface_hub, which is not installed; run: pip install 'restmcts[hf]'") from None
    if quiet:
        disable_progress_bars()
    token = get_token()
    if token is None:
        raise HubError("there is no token of the hub; run: hf auth login, or set HF_TOKEN")
    api = HfApi(token=token)
    for upload in made:
        _open(api, upload, public, token)
    found = []
    for upload in made:
        _add_licence(api, upload)
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in upload.files.items()
        ]
        text = message or f"Add {'data' if upload.what == 'data' else f'{upload.what} model'} made by restmcts"
        _asked(api.create_commit, token, upload.repo, operations, commit_message=text, repo_type=upload.repo_type)
        found.append(f"{api.endpoint}/{upload.url}")
    return found


def _open(api: Any, upload: Upload, public: bool, token: str) -> None:
    """See that the repository is there, and that no more people can read it than is wanted."""
    options = {"repo_type": upload.repo_type}
    _asked(api.create_repo, token, upload.repo, private=not public, exist_ok=True, **options)
    if not public and not _asked(api.repo_info, token, upload.repo, **options).private:
        raise HubError(f"{upload.url} is public; push there with --public, or to another repository")


def _add_licence(api: Any, upload: Upload) -> None:
    """Ask the hub for the licence of a model's base, where the card does not know it."""
    content = upload.files[CARD]
    if upload.what == "data" or not isinstance(content, bytes):
        return
    facts = facts_of(upload.folder)
    if facts is None or facts.licence or facts.hub_base is None:
        return
    with suppress(Exception):  # a card without a licence will do
        data = api.model_info(facts.hub_base, timeout=_LOOKUP_SECONDS).card_data
        licence = data.license if data is not None else None
        if isinstance(licence, str):
            upload.files[CARD] = (card(upload.folder, upload.repo, licence) or "").encode()


def _asked(call: Callable[..., Any], token: str, *words: Any, **options: Any) -> Any:
    """What a call of the hub's library returns. Raises HubError, on one line and without the token."""
    try:
        return call(*words, **options)
    except Exception as error:  # the library has no common base class for what can go wrong
        said = " ".join(str(error).split()).replace(token, "…") or type(error).__name__
        raise HubError(f"the hub did not take {words[0]}: {said[:400]}; check name, rights and connection") from None

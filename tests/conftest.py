"""Fixtures shared by the tests."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from restmcts import cli
from restmcts.shell import guarded
from tests.tiny import FAMILIES, tiny_model, tiny_value

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Ctrl-C works in tests, and in what they start, even where the tests were started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public question sets kept beside the checkout; tests that need them are skipped where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no question sets at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each supported model family in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random-weight causal language model with a chat template."""
    return tiny_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def tiny_value_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random-weight value model."""
    return tiny_value(tmp_path_factory.mktemp("value"))


class Said(NamedTuple):
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def restmcts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """Run a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Said:
        capsys.readouterr()
        code = guarded(cli._dispatch, list(map(str, words)))
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: tiny models gain nothing from more, and on a busy machine threads wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

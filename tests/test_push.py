"""Pushing: what is listed is what is sent, private unless asked otherwise, without a word of the token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")

from restmcts.errors import ConfigError, StoreError
from restmcts.hub import DATA_FILES, size_of, uploads
from restmcts.manifest import MANIFEST
from restmcts.store import RunFolder, write_jsonl
from tests.fake_hub import FakeHub, Repo
from tests.tiny import tiny_model, tiny_value

ROOT = Path(__file__).parents[1]
TOKEN = "hf_S3cretS3cretS3cretS3cretS3cret"


def made_run(folder: Path) -> Path:
    """A run of two rounds as it lies on the disk: models, and data that is and is not to be pushed."""
    records = []
    with RunFolder(folder) as run:
        for kind, make in (("policy", tiny_model), ("value", tiny_value)):
            for k in (1, 2):
                name = f"round-{k}/{kind}"
                with run.stage(name, settings={"training": {"method": "lora"}, "base": "owner/base"}) as stage:
                    make(stage.path)
                    (stage.path / "training.json").write_text(json.dumps({"place": str(folder)}))
                    (stage.path / "checkpoints").mkdir()
                    (stage.path / "checkpoints" / "old.safetensors").write_text("x")
                    manifest = stage.finish({"rows": 12 * k})
                records.append({"stage": name, "kind": kind, "phase": k, "mode": None, "seconds": manifest.seconds})
                records[-1]["metrics"] = {"rows": 12 * k}
    for name in DATA_FILES[:4]:
        place = "search" if name == "trees.jsonl" else "label"
        write_jsonl(folder / "round-1" / place / name, [{"of": name}])
    write_jsonl(folder / "round-1" / "completions" / "trees.jsonl", [{"of": "completed"}])
    write_jsonl(folder / "round-1" / "evaluate" / "greedy" / "trees.jsonl", [{"of": "held-out"}])
    write_jsonl(folder / "metrics.jsonl", records)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("push") / "run")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as fake:
        yield fake


def push(tmp_path: Path, hub: FakeHub, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which knows no hub but the fake one."""
    ours = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    ours |= {"PYTHONPATH": str(ROOT / "src"), "NO_PROXY": "*", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-m", "restmcts", "push", *map(str, words)],
        env={**os.environ, **ours, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_policy_arrives_as_it_is(tmp_path, run, hub):
    done = push(tmp_path, hub, run, "me/mine", "-q")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.url}/me/mine\n"
    (repo,) = hub.repos.values()
    folder = run / "round-2" / "policy"
    assert repo.private
    assert repo.commits == ["Add policy model made by restmcts"]
    assert repo.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= repo.files.keys()
    assert not repo.files.keys() & {MANIFEST, "training.json", "checkpoints/old.safetensors"}
    assert str(run).encode() not in b"".join(repo.files.values()), "no path of this machine"
    assert b"base_model: owner/base" in repo.files["README.md"]
    assert b"# me/mine" in repo.files["README.md"]
    assert any(headers.get("authorization") == f"Bearer {TOKEN}" for _, _, headers in hub.requests)


def test_all_of_a_run_goes_to_three_places(tmp_path, run, hub):
    done = push(tmp_path, hub, run, "me/mine", "--what", "all", "--public", "--message", "First", "-q")
    assert done.returncode == 0, done.stderr
    names = ["models/me/mine", "models/me/mine-value", "datasets/me/mine-data"]
    assert list(hub.repos) == names
    assert not any(repo.private for repo in hub.repos.values())
    assert {commit for repo in hub.repos.values() for commit in repo.commits} == {"First"}
    data = hub.repos[names[2]].files
    assert data.keys() == {"README.md", *(f"round-1/{name}" for name in DATA_FILES[:4])}
    assert b"completed" in data["round-1/trees.jsonl"], "the trees with their completions"
    assert b"held-out" not in b"".join(data.values())
    assert b"config_name: value_rows" in data["README.md"]


def test_a_dry_run_sends_nothing_and_needs_no_token(tmp_path, run, hub):
    done = push(tmp_path, hub, run, "me/mine", "--what", "policy,data", "--dry-run", HF_TOKEN="", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert not hub.requests
    (policy, data) = uploads(run, "me/mine", ["policy", "data"])
    for name, content in [*policy.files.items(), *data.files.items()]:
        assert name in done.stdout
        assert size_of(content) > 0
    assert "private" in done.stdout
    assert done.stdout.endswith("nothing was uploaded\n")


def test_a_public_repository_is_not_filled_unasked(tmp_path, run, hub):
    hub.repos["models/me/mine"] = Repo(private=False)
    done = push(tmp_path, hub, run, "me/mine", "-q")
    assert done.returncode == 2
    assert "me/mine is public; push there with --public" in done.stderr
    assert not hub.repos["models/me/mine"].commits
    assert push(tmp_path, hub, run, "me/mine", "--public", "-q").returncode == 0


def test_the_licence_of_the_base_is_asked_for(tmp_path, run, hub):
    hub.repos["models/owner/base"] = Repo(private=False, card={"license": "mit"})
    assert push(tmp_path, hub, run, "me/mine", "-q").returncode == 0
    assert hub.repos["models/me/mine"].files["README.md"].startswith(b"---\nlicense: mit\n")


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ((401, json.dumps({"error": f"Invalid token {TOKEN}"})), "the hub did not take me/mine"),
        ((500, f"broken: {TOKEN}"), "the hub did not take me/mine"),
    ],
)
def test_the_token_is_in_no_message(tmp_path, run, hub, refusal, says):
    hub.refuse = refusal
    done = push(tmp_path, hub, run, "me/mine", "-q", HF_HUB_DOWNLOAD_TIMEOUT="2")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert says in done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_without_a_token_or_a_hub_it_is_one_line(tmp_path, run, hub):
    done = push(tmp_path, hub, run, "me/mine", HF_TOKEN="")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "hf auth login" in done.stderr
    hub._server.server_close()
    done = push(tmp_path, hub, run, "me/mine", HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_what_a_folder_holds_decides(tmp_path, run):
    (value,) = uploads(run / "round-1" / "value", "me/it")
    assert (value.what, value.repo_type) == ("value", "model")
    (data,) = uploads(run / "round-1" / "label", "me/it")
    assert (data.what, sorted(data.files)) == (
        "data",
        ["README.md", "labels.jsonl", "policy_rows.jsonl", "value_rows.jsonl"],
    )
    (first,) = uploads(run, "me/it", ["value"], round=1)
    assert first.folder == run / "round-1" / "value"
    own = tmp_path / "own"
    with RunFolder(own) as folder, folder.stage(".", settings={}) as stage:
        tiny_model(stage.path)
        stage.finish()
    (own / "README.md").write_text("My words")
    (mine,) = uploads(own, "me/it")
    assert mine.files["README.md"] == own / "README.md", "a card that somebody wrote is left as it is"


def test_what_cannot_be_pushed_is_said(tmp_path, run):
    def refused(kind: type[Exception], match: str, *words: Any, **options: Any) -> None:
        with pytest.raises(kind, match=match):
            uploads(*words, **options)

    for name in ("mine", "me/mine/more", "me/../x", "me/--x", "/x", "me/"):
        refused(ConfigError, "give owner/name", run, name)
    refused(ConfigError, "--what 'all of it'", run, "me/it", ["all of it"])
    refused(ConfigError, "holds a value model", run / "round-1" / "value", "me/it", ["policy"])
    refused(StoreError, "no such folder", tmp_path / "nowhere", "me/it")
    refused(StoreError, "holds no model", tmp_path, "me/it")
    refused(StoreError, "trained no policy model by round 0", run, "me/it", round=0)
    refused(StoreError, "of round 7", run, "me/it", ["data"], round=7)

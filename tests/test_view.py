"""What the viewer says of run folders, and whom it says it to."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from restmcts import cli, loop
from restmcts.errors import ConfigError, StoreError
from restmcts.evaluate import Row, write_rows
from restmcts.lock import Lock
from restmcts.results import load_run
from restmcts.rows import TreeLabels, read_rows
from restmcts.store import read_jsonl, write_jsonl
from restmcts.types import Tree
from restmcts.view import page
from restmcts.view.index import COLUMNS
from restmcts.view.server import ViewServer, open_server
from restmcts.view.viewer import Viewer
from tests.adder import AdderTools
from tests.grown import HOSTILE, grown, write_trees
from tests.test_loop import config
from tests.test_report import make_run

STATIC = Path(page.__file__).parent / "static"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round over sums."""
    folder = tmp_path_factory.mktemp("viewed")
    loop.run(config(folder, rounds=1), tools=AdderTools())
    return folder / "run"


@pytest.fixture
def viewer(run: Path) -> Iterator[Viewer]:
    found = Viewer(run)
    found.refresh()
    yield found
    found.close()


def rows(viewer: Viewer, name: str) -> list[dict[str, Any]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in viewer.rows(name)["rows"]]


# ---------------------------------------------------------------- what is said of a run


def test_the_tree_sets_of_a_run_in_its_order(viewer: Viewer):
    sets = viewer.state()["sets"]
    assert [one["name"] for one in sets] == [
        "base/evaluate/greedy", "base/evaluate/search", "round-0/evaluate/greedy", "round-0/evaluate/search",
        "round-1/search", "round-1/evaluate/greedy", "round-1/evaluate/search",
    ]  # fmt: skip
    training = sets[4]
    assert (training["title"], training["pool"], training["phase"]) == ("round 1, training search", "training", 1)
    assert (sets[1]["title"], sets[1]["pool"], sets[1]["mode"]) == ("base model, search", "held-out", "search")
    assert all(one["finished"] and one["share"] == 1 and one["unreadable"] == 0 for one in sets)


def test_rows_say_what_the_run_measured(viewer: Viewer, run: Path):
    found = {row["id"]: row for row in rows(viewer, "round-1/evaluate/search")}
    measured = load_run(run).rows[1, "search"]
    assert len(found) == len(measured) == 10
    for row in measured:
        said = found[row.id]
        assert (said["right"], said["answer"], said["gold"]) == (row.correct, row.answer, row.gold)
        assert (said["nodes"], said["finished"], said["policy_tokens"]) == (row.nodes, row.finished, row.policy_tokens)
        assert said["reached"] or not said["right"]


def test_the_gap_is_between_value_and_outcome_at_finished_leaves(viewer: Viewer):
    for number, row in enumerate(rows(viewer, "round-1/search")):
        nodes = viewer.tree("round-1/search", number)["nodes"]
        pairs = [(v, c) for v, c in zip(nodes["raw_value"], nodes["correct"], strict=True) if None not in (v, c)]
        assert row["gap"] == pytest.approx(sum(abs(v - c) for v, c in pairs) / len(pairs))


def test_a_tree_has_the_labels_of_the_run(viewer: Viewer, run: Path):
    labels = {record.id: record for record in read_rows(run / "round-1/label/labels.jsonl", TreeLabels)}
    for number in range(12):
        found = viewer.tree("round-1/search", number)
        assert found["labels_from"] == "run"
        for name in ("correct", "m", "r", "w", "v"):
            assert found["nodes"][name] == getattr(labels[found["id"]], name)


def test_labels_inferred_here_are_those_that_the_run_would_make(run: Path, tmp_path: Path):
    shutil.copytree(run / "round-1/search", tmp_path / "alone")
    alone, whole = Viewer(tmp_path / "alone"), Viewer(run)
    for viewer in (alone, whole):
        viewer.refresh()
    here, there = alone.tree(".", 3), whole.tree("round-1/search", 3)
    assert (here["labels_from"], there["labels_from"]) == ("here", "run")
    assert here["nodes"] == there["nodes"]
    assert alone.overview() == {}
    alone.close()
    whole.close()


def test_the_prompt_is_what_the_policy_was_asked(viewer: Viewer):
    turns = viewer.tree("base/evaluate/greedy", 0)["prompt"]
    assert turns[0]["role"] == "system"
    assert turns[-1] == {"role": "user", "content": viewer.tree("base/evaluate/greedy", 0)["question"]}
    assert [turn["role"] for turn in turns].count("assistant") == 3  # examples, for the untrained model only
    assert len(viewer.tree("round-1/evaluate/greedy", 0)["prompt"]) == 2


def test_the_numbers_are_those_of_the_report(viewer: Viewer, run: Path):
    found, loaded = viewer.overview(), load_run(run)
    assert [phase["name"] for phase in found["accuracy"]] == ["base model", "warm start", "round 1"]
    right = [row.correct for row in loaded.rows[1, "search"]]
    assert found["accuracy"][-1]["search"]["share"] == sum(right) / len(right)
    facts = loaded.of_kind("label")[1]["metrics"]
    assert (found["search"][-1]["solved"], found["search"][-1]["reached"]) == (facts["solved"], facts["reached"])
    quality = loaded.evaluation(1, "search")["metrics"]["quality"]
    assert found["value"][-1]["auc_in_tree"] == quality["auc_in_tree"]
    assert [stage["stage"] for stage in found["stages"]] == [record["stage"] for record in loaded.records]
    assert "Held-out accuracy" in [table["title"] for table in found["tables"]]
    assert "Where it is" not in [table["title"] for table in found["tables"]]


def test_looking_leaves_the_folder_as_it_was(run: Path):
    def everything() -> dict[Path, tuple[int, bytes]]:
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}

    before = everything()
    with Viewer(run) as viewer:
        viewer.refresh()
        viewer.state()
        viewer.overview()
        viewer.tree("round-1/search", 0)
    assert everything() == before


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="no such folder"):
        Viewer(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="neither results nor trees"):
        Viewer(tmp_path)


# ---------------------------------------------------------------- a run that is going


def test_trees_are_listed_as_they_are_written(tmp_path: Path):
    lines = [json.dumps(grown(f"q{i}", f"question {i}", 12, seed=i).to_record()) + "\n" for i in range(3)]
    file = tmp_path / "search" / "trees.jsonl"
    file.parent.mkdir()
    file.write_text(lines[0] + lines[1][:40], encoding="utf-8")
    viewer = Viewer(tmp_path)
    viewer.refresh()
    assert [row["id"] for row in rows(viewer, "search")] == ["q0"]  # a line still being written is no tree yet
    version = viewer.rows("search")["version"]
    with file.open("a", encoding="utf-8") as more:
        more.write(lines[1][40:] + "no tree\n" + '{"schema": 1}\n' + lines[2])
    viewer.refresh()
    assert [row["id"] for row in rows(viewer, "search")] == ["q0", "q1", "q2"]
    assert viewer.rows("search", 2)["rows"][0][1] == "q2"
    assert viewer.tree("search", 2)["id"] == "q2"
    assert viewer.rows("search")["version"] == version
    assert viewer.state()["sets"][0]["unreadable"] == 2
    file.unlink()
    file.write_text(lines[2], encoding="utf-8")  # another file in its place
    viewer.refresh()
    assert [row["id"] for row in rows(viewer, "search")] == ["q2"]
    assert viewer.rows("search")["version"] > version
    viewer.close()


def test_what_the_run_graded_counts_as_soon_as_it_is_there(tmp_path: Path):
    tree = grown("q", "How much?", 30, answer="42")
    write_trees(tmp_path / "greedy", [tree])
    viewer = Viewer(tmp_path)
    viewer.refresh()
    version, said = viewer.rows("greedy")["version"], rows(viewer, "greedy")[0]["right"]
    assert said is (tree.final_answer == "42")
    row = Row("q", "cot", tree.final_answer, "42", not said, 1, 1, 0, 0, 0.1, 30, 1, "done")
    write_rows(tmp_path / "greedy" / "rows.jsonl", [row])
    viewer.refresh()
    assert rows(viewer, "greedy")[0]["right"] is not said
    assert viewer.rows("greedy")["version"] > version
    viewer.close()


def test_an_answer_that_only_the_symbolic_engine_can_grade_is_open_in_the_table(tmp_path: Path):
    tree = grown("q", "Simplify.", 30, answer=r"\frac{x^2-1}{x-1}")
    for node in tree.finished():
        tree.answer[node] = "x+1"
    tree.final_answer = "x+1"
    unknown = grown("u", "Who knows?", 12)
    unknown.problem = type(unknown.problem)("u", "Who knows?")
    write_trees(tmp_path / "search", [tree, unknown])
    viewer = Viewer(tmp_path)
    viewer.refresh()
    assert [row["right"] for row in rows(viewer, "search")] == [None, None]
    assert viewer.tree("search", 0)["nodes"]["correct"][tree.result] is True
    assert viewer.tree("search", 1)["labels_from"] is None
    viewer.close()


def test_a_run_is_said_to_run_while_its_process_lives(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    viewer = Viewer(tmp_path / "run")
    assert not viewer.state()["running"]
    lock = Lock(tmp_path / "run" / "run.lock")
    assert viewer.state()["running"]
    lock.release()
    holder = {"pid": 2**22 + 1, "host": "elsewhere"}
    (tmp_path / "run" / "run.lock").write_text(json.dumps(holder), encoding="utf-8")
    assert viewer.state()["running"]  # nobody here can know
    viewer.close()


def test_the_thread_keeps_up(tmp_path: Path):
    write_trees(tmp_path / "search", [grown("q0", "first", 8)])
    with Viewer(tmp_path) as viewer:
        end = threading.Event()
        write_trees(tmp_path / "more", [grown("q1", "second", 8)])
        for _ in range(100):
            if len(viewer.state()["sets"]) == 2 and all(one["trees"] for one in viewer.state()["sets"]):
                break
            end.wait(0.1)
        assert [one["trees"] for one in viewer.state()["sets"]] == [1, 1]


# ---------------------------------------------------------------- over HTTP


@pytest.fixture
def server(viewer: Viewer) -> Iterator[ViewServer]:
    with open_server(viewer, port=0) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def ask(server: ViewServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    reply = connection.getresponse()
    found = reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
    connection.close()
    return found


def test_the_page_and_its_data_are_served(server: ViewServer):
    status, headers, body = ask(server, "/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    for name in re.findall(rb'(?:src|href)="(static/[^"]+)"', body):
        assert ask(server, "/" + name.decode())[0] == 200
    assert json.loads(ask(server, "/state")[2])["name"] == "run"
    assert len(json.loads(ask(server, "/rows?set=round-1%2Fsearch&start=2")[2])["rows"]) == 10
    packed = ask(server, "/static/style.css", **{"Accept-Encoding": "gzip"})
    assert packed[1]["content-encoding"] == "gzip"
    assert gzip.decompress(packed[2]) == (STATIC / "style.css").read_bytes()
    assert json.loads(ask(server, "/tree?set=round-1/search&row=0")[2])["nodes"]["parent"][0] == -1
    assert ask(server, "/", "HEAD")[2] == b""


def test_the_security_headers_let_nothing_in(server: ViewServer):
    for path in ("/", "/state", "/static/main.js", "/nothing"):
        headers = ask(server, path)[1]
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/static/../viewer.py", 404), ("/static/%2e%2e/viewer.py", 404), ("/etc/passwd", 404), ("//etc/passwd", 404),
        ("/tree?set=../../etc&row=0", 404), ("/tree?set=round-1/search&row=-1", 404), ("/rows?set=nonsense", 404),
        ("/tree?set=round-1/search&row=100000", 404), ("/tree?set=round-1/search&row=x", 400), ("/rows", 400),
    ],
)  # fmt: skip
def test_only_what_is_meant_to_be_seen_is(server: ViewServer, path: str, status: int):
    assert ask(server, path)[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(server: ViewServer, method: str):
    assert ask(server, "/state", method)[0] == 501


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8421", "127.0.0.1.evil.example", ""])
def test_another_sites_name_for_this_machine_is_refused(server: ViewServer, host: str):
    assert ask(server, "/state", Host=host)[0] == 404
    assert ask(server, "/state", Host="localhost:1")[0] == 200
    assert ask(server, "/state", Host="[::1]:8421")[0] == 200


def test_opened_to_others_it_wants_a_token(viewer: Viewer):
    with open_server(viewer, host="0.0.0.0", port=0) as server:
        assert server.token
        assert len(server.token) > 20
        assert server.url.endswith(f"/{server.token}/")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        for path in ("/", "/state", "/static/main.js", f"/{server.token[:-1]}/", f"/{server.token}", "/%C3%A4/"):
            assert ask(server, path)[0] == 404
        assert ask(server, f"/{server.token}/", Host="any.name")[0] == 200
        assert ask(server, f"/{server.token}/state")[0] == 200
        assert ask(server, f"/{server.token}/static/main.js")[0] == 200
        server.shutdown()
        thread.join()


def test_a_port_in_use(viewer: Viewer, server: ViewServer):
    with pytest.raises(ConfigError, match=f"port {server.server_port}: .*another --port"):
        open_server(viewer, port=server.server_port)
    with open_server(viewer) as first, open_server(viewer) as second:
        assert first.server_port != second.server_port


def test_the_command_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        cli.main(["view", str(tmp_path), "--no-browser"])
    assert stop.value.code == 2
    assert "neither results nor trees" in capsys.readouterr().err


# ---------------------------------------------------------------- as one file


def embedded(text: str, name: str) -> Any:
    packed = re.search(rf'<script type="text/plain" id="{name}">([A-Za-z0-9+/=]*)</script>', text)
    assert packed, name
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_the_one_file_holds_everything(run: Path, viewer: Viewer, tmp_path: Path):
    cli._dispatch(["report", str(run), "--html", str(tmp_path / "report.html")])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    data = embedded(text, "data")
    assert data["overview"] == json.loads(page.as_json(viewer.overview()))
    assert [one["name"] for one in data["state"]["sets"]] == [one["name"] for one in viewer.state()["sets"]]
    for name, kept in data["rows"].items():
        assert kept["rows"] == viewer.rows(name)["rows"]
        for row in range(len(kept["rows"])):
            piece = embedded(text, f"trees-{data['trees'][name][str(row)]}")
            (tree,) = (found for found in piece if (found["set"], found["row"]) == (name, row))
            assert tree == json.loads(page.as_json(viewer.tree(name, row)))


def test_the_one_file_lets_in_its_own_scripts_only(run: Path):
    text = page.page([run])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == len(page.SCRIPTS)
    for content in [*scripts, *re.findall(r"<style>(.*?)</style>", text, re.DOTALL)]:
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy
    assert not re.findall(
        r"""(?:src|href)\s*=\s*["'](?!data:,|#)[^"']*""", re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    )


def test_what_has_no_room_is_left_out_question_by_question(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page, "TREES_MIB", 0)
    assert embedded(page.page([run]), "data")["trees"] == {}
    monkeypatch.setattr(page, "TREES_MIB", 12)
    monkeypatch.setattr(page, "_TREES_A_PIECE", 5)
    data = embedded(page.page([run]), "data")
    pieces = [piece for kept in data["trees"].values() for piece in kept.values()]
    assert len(pieces) == sum(len(found["rows"]) for found in data["rows"].values())
    assert max(pieces) > 5


def test_several_seeds_make_one_page_of_their_numbers(tmp_path: Path):
    outs = [make_run(tmp_path / f"seed-{seed}", seed, n=40) for seed in range(2)]
    data = embedded(page.page(outs), "data")
    assert data["state"] == {"name": "2 runs", "sets": []}
    assert data["overview"]["accuracy"][-1]["search"]["n"] == 80
    assert data["overview"]["search"][0]["solved"] == 20
    assert "Held-out accuracy by run" in [table["title"] for table in data["overview"]["tables"]]


def test_markup_in_a_run_stays_data(run: Path, tmp_path: Path):
    """In the one file, nothing that a model wrote stands as text at all: it is in base64, or escaped."""
    shutil.copytree(run, tmp_path / "run")
    records = list(read_jsonl(tmp_path / "run/round-1/search/trees.jsonl"))
    for record, text in zip(records, HOSTILE, strict=False):
        record["text"] = [text] * len(record["text"])
        record["problem"]["question"] = text
    write_jsonl(tmp_path / "run/round-1/search/trees.jsonl", records)
    text = page.page([tmp_path / "run"])
    assert "window.hit" not in text
    data = embedded(text, "data")
    assert HOSTILE[0] in {row[COLUMNS.index("question")] for row in data["rows"]["round-1/search"]["rows"]}


# ---------------------------------------------------------------- the scripts themselves


@pytest.mark.parametrize("name", [name for name in page.SCRIPTS if name != "temml.min.js"])
def test_the_scripts_make_no_markup_of_text_and_ask_nobody_else(name: str):
    source = (STATIC / name).read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function", source
    )
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source)
    assert "</script" not in source


def test_every_file_of_the_page_is_named_and_every_one_named_is_there():
    files = {path.name for path in STATIC.iterdir()}
    assert files == {*page.SCRIPTS, *page.STYLES, "page.html", "temml.LICENSE"}
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style


def test_a_tree_of_any_kind_is_shown(tmp_path: Path):
    lone = Tree(grown("x", "?", 4).problem, "cot", 1)
    write_trees(tmp_path / "search", [lone, grown("big", "?", 3000)])
    viewer = Viewer(tmp_path)
    viewer.refresh()
    assert [row["nodes"] for row in rows(viewer, "search")] == [1, 3000]
    assert page.as_json(viewer.tree("search", 0))
    viewer.close()


def test_reading_while_following_reads_every_tree_once(tmp_path: Path):
    write_trees(tmp_path / "search", [grown(f"q{i}", f"Question {i}", 60, seed=i) for i in range(400)])
    with Viewer(tmp_path) as viewer:
        readers = [threading.Thread(target=viewer.refresh) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        found = rows(viewer, "search")
        assert [row["id"] for row in found] == [f"q{i}" for i in range(400)]
        assert viewer.tree("search", 399)["id"] == "q399"

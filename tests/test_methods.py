"""The methods of self-training: their stages, what is resumed, and what each learns from; on a make-believe model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from restmcts import loop
from restmcts.config import load_config
from restmcts.engines import Engines
from restmcts.errors import ConfigError, TaskError, TrainError
from restmcts.methods import METHODS
from restmcts.results import load_run
from restmcts.store import read_jsonl, write_jsonl
from restmcts.types import Problem, Proposals, Propose, Sample, Step, Usage
from tests.adder import Adder, AdderTools, problem, right_step
from tests.test_loop import config, contents, stages_of


class JudgingAdder(Adder):
    """Adds, and as a judge gives 5 points to a right solution and 1 to a wrong one; every fifth verdict is mumbling."""

    async def propose(self, request: Propose) -> Proposals:
        if request.problem.task != "judge":
            return await super().propose(request)
        assert request.problem.instruction is not None
        asked, _, solution = request.problem.question.partition("Solution:\n")
        steps = [Step(line) for line in solution.partition("\n\nHow many")[0].splitlines()]
        sum_asked = Problem("", asked)
        right = all(step.text == right_step(sum_asked, steps[:k])[0] for k, step in enumerate(steps))
        said = "I like it." if len(solution) % 5 == 0 else f"Score: {5 if right else 1}"
        return Proposals((Sample(Step(said), "end"),) * request.n, Usage(policy_tokens=3 * request.n, requests=1))


class JudgingTools(AdderTools):
    def load_engines(self, policy: str | Path, value: str | Path | None, examples: Sequence[Problem]) -> Engines:
        self.calls.append(f"load {Path(policy).parent.name or policy} {len(examples)}")
        engine = JudgingAdder(self._skill(policy), self.interrupt_after)
        self.opened.append(engine)
        return Engines(engine, None if value is None else engine)

    def train(self, kind: str, rows: Sequence[Any], **options: Any) -> Mapping[str, Any]:
        facts = {
            "preference": {"accuracy_first": 0.5, "accuracy_last": 0.875, "margin_last": 0.25},
            "online": {"steps": 40, "reward_first": 0.125, "reward_last": 0.375, "silent_last": 0.5},
        }
        return {**super().train(kind, rows, **options), **facts.get(kind, {})}


def run(tmp_path: Path, method: str, name: str = "run", **changes: Any) -> tuple[Path, AdderTools]:
    tools = JudgingTools()
    changes = {"rounds": 1, "method": method, "evaluate": {"base": []}, **changes}
    loop.run(config(tmp_path, name, **changes), tools=tools)
    return tmp_path / name, tools


WARM = ["data", "round-0/rows", "round-0/policy"]


@pytest.mark.parametrize(
    ("method", "warm", "stages", "trained"),
    [
        ("rest-mcts", [*WARM, "round-0/value"], "search label policy value", "policy value policy value"),
        ("rest-em", WARM, "search label policy", "policy policy"),
        ("self-rewarding", WARM, "search judge pairs policy", "policy preference"),
        (
            "mcts-dpo",
            [*WARM, "round-0/value"],
            "search label pairs policy value",
            "policy value preference value",
        ),
        ("online", WARM, "policy", "policy online"),
    ],
)
def test_the_stages_of_each_method(tmp_path: Path, method: str, warm: list[str], stages: str, trained: str):
    out, tools = run(tmp_path, method)
    measured = ["evaluate/greedy", "evaluate/search"]
    expected = [*warm, *(f"round-0/{m}" for m in measured)]
    expected += [f"round-1/{stage}" for stage in [*stages.split(), *measured]]
    assert stages_of(out) == expected
    assert [call.removeprefix("train ") for call in tools.calls if call.startswith("train")] == trained.split()
    again = JudgingTools()
    loop.run(load_config(out / "config.yaml"), tools=again)
    assert again.calls == []
    report = (out / "report.md").read_text(encoding="utf-8")
    for title, whose in (
        ("## Preference training", {"mcts-dpo", "self-rewarding"}),
        ("| round 1 | 40 | 12.5 % | 37.5 % |", {"online"}),
        ("## The judge", {"self-rewarding"}),
        ("| round 1, policy | ", METHODS),
    ):
        assert (title in report) == (method in whose)


def test_every_method_has_its_source_in_its_file():
    for method in METHODS.values():
        assert "arXiv" in str(__import__(method.__module__, fromlist=["x"]).__doc__)


def test_rest_em_samples_and_starts_from_the_base_every_round(tmp_path: Path):
    out, _ = run(tmp_path, "rest-em", rounds=2)
    settings = load_config(out / "config.yaml")
    assert (settings.search.method, settings.evaluate.search.method) == ("sample", "sample")
    assert (settings.policy_training.start, settings.policy_training.pick) == ("base", "random")
    assert {tree["method"] for tree in read_jsonl(out / "round-2/search/trees.jsonl")} == {"sample"}
    skills = [(out / f"round-{k}/policy/skill.json").read_text() for k in (1, 2)]
    assert skills == ["0.7", "0.7"]
    on, _ = run(tmp_path, "rest-em", "on", rounds=2, policy_training={"start": "previous"})
    assert float((on / "round-2/policy/skill.json").read_text()) == pytest.approx(0.9)


def test_a_held_out_search_that_asks_for_values_brings_a_value_model(tmp_path: Path):
    search = {"base": [], "search": {"method": "mcts_star"}}
    out, tools = run(tmp_path, "rest-em", evaluate=search)
    assert tools.calls.count("train value") == 2
    assert load_run(out).evaluation(1, "search")["metrics"]["method"] == "mcts_star"


def test_self_rewarding_reads_no_answers(tmp_path: Path):
    known, _ = run(tmp_path, "self-rewarding", "known")
    blank = [{"id": p.id, "question": p.question} for p in (problem(i) for i in range(12))]
    write_jsonl(tmp_path / "blank.jsonl", blank)
    out, _ = run(tmp_path, "self-rewarding", problems=str(tmp_path / "blank.jsonl"))
    pairs = list(read_jsonl(out / "round-1/pairs/pairs.jsonl"))
    assert pairs == list(read_jsonl(known / "round-1/pairs/pairs.jsonl"))
    assert all((pair["chosen_value"], pair["rejected_value"]) == (1.0, 0.2) for pair in pairs)
    assert len({pair["problem_id"] for pair in pairs}) > 3
    judged = load_run(known).of_kind("judge")[1]["metrics"]
    assert judged["auc"] == 1.0
    assert 0 < judged["unread"] < judged["judged"]
    assert "auc" not in load_run(out).of_kind("judge")[1]["metrics"]
    with pytest.raises(TaskError, match="answer"):
        run(tmp_path, "rest-em", "other", problems=str(tmp_path / "blank.jsonl"))


def test_pairs_of_steps_are_siblings_right_before_wrong(tmp_path: Path):
    out, _ = run(tmp_path, "mcts-dpo")
    pairs = list(read_jsonl(out / "round-1/pairs/pairs.jsonl"))
    assert pairs
    for pair in pairs:
        assert len(pair["chosen"]) == len(pair["rejected"]) == 1
        assert pair["chosen_value"] >= pair["rejected_value"] + 0.1
        steps = [Step(text) for text in pair["steps"]]
        if pair["chosen_value"] == 1.0:
            assert pair["chosen"][0] == right_step(Problem("", pair["question"]), steps)[0]


def test_interrupted_methods_end_as_straight_ones(tmp_path: Path):
    straight, _ = run(tmp_path, "self-rewarding", "straight", engine={"concurrency": 1})
    settings = config(tmp_path, "torn", rounds=1, method="self-rewarding", evaluate={"base": []})
    for _ in range(60):
        try:
            loop.run(settings, tools=JudgingTools(interrupt_after=25))
        except KeyboardInterrupt:
            continue
        break
    assert contents(tmp_path / "torn") == contents(straight)


def test_what_does_not_go_together_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="method = 'rest-dpo'"):
        config(tmp_path, method="rest-dpo")
    with pytest.raises(ConfigError, match="online takes oracle or majority"):
        run(tmp_path, "online", labels={"source": "judge"})
    with pytest.raises(ConfigError, match="math-shepherd' grades completions by the known answers"):
        run(tmp_path, "rest-mcts", labels={"source": "majority", "rule": "math-shepherd"})
    with pytest.raises(ConfigError, match="patience needs held-out"):
        run(tmp_path, "rest-em", heldout=None, curriculum={"patience": 1})
    monkeypatch.setattr(loop, "find_spec", lambda name: None)
    with pytest.raises(TrainError, match=r"method = 'online' needs trl.*pip install 'restmcts\[rl\]'"):
        loop.run(config(tmp_path, method="online"))
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    monkeypatch.delitem(__import__("sys").modules, "restmcts.train.preference", raising=False)
    with pytest.raises(TrainError, match=r"needs trl, which is not installed"):
        loop.trainer("preference")


def test_another_method_in_the_same_folder_is_refused(tmp_path: Path):
    run(tmp_path, "mcts-dpo")
    with pytest.raises(ConfigError, match=r"round-1/policy was made with training\.\w+"):
        run(tmp_path, "rest-mcts")


def test_searches_for_answers_begin_greedily_and_those_for_traces_do_not(tmp_path: Path):
    out, _ = run(tmp_path, "rest-mcts")
    first = {
        name: {record["origin"][1] for record in read_jsonl(out / "round-1" / name / "trees.jsonl")}
        for name in ("search", "evaluate/search")
    }
    assert first == {"search": {"expand"}, "evaluate/search": {"greedy"}}


# ---------------------------------------------------------------- curriculum


def test_solved_questions_are_skipped_and_others_get_more(tmp_path: Path):
    asked = {"skip_solved": True, "more_search": 2.0}
    # Few leaves, so that some questions are solved by all.
    search = {"iterations": 5, "branch": 2, "widening": 0, "rollout_temperature": 1.0}
    out, _ = run(tmp_path, "rest-mcts", rounds=3, curriculum=asked, search=search)
    plain, _ = run(tmp_path, "rest-mcts", "plain", rounds=1, search=search)
    assert (out / "round-1/search/trees.jsonl").read_bytes().count(b"\n") == 12
    ids = [record["id"] for record in read_jsonl(plain / "round-1/label/labels.jsonl")]
    labels = {record["id"]: record["correct"] for record in read_jsonl(out / "round-1/label/labels.jsonl")}
    assert list(labels) == ids
    solved = {name for name, flags in labels.items() if any(flags) and not any(flag is False for flag in flags)}
    hard = {name for name, flags in labels.items() if 2 * flags.count(True) < flags.count(True) + flags.count(False)}
    trees = {tree["id"]: tree for tree in read_jsonl(out / "round-2/search/trees.jsonl")}
    assert solved
    assert hard
    assert set(trees) == set(ids) - solved
    assert {name for name, tree in trees.items() if tree["settings"]["iterations"] == 10} == hard
    again = JudgingTools()
    loop.run(load_config(out / "config.yaml"), tools=again)
    assert again.calls == []


def test_rounds_that_make_it_worse_end_the_run(tmp_path: Path):
    class Declining(JudgingTools):
        """The first round helps, every later one does harm."""

        def _skill(self, model: str | Path) -> float:
            k = Path(model).parent.name.removeprefix("round-")
            return {"0": 0.6, "1": 0.95, "2": 0.5, "3": 0.4, "4": 0.3}.get(k, 0.6)

    settings = {"rounds": 5, "curriculum": {"patience": 2}, "evaluate": {"base": [], "search_rounds": "last"}}
    tools = Declining()
    loop.run(config(tmp_path, **settings), tools=tools)
    out = tmp_path / "run"
    rounds = {stage.partition("/")[0] for stage in stages_of(out)} - {"data"}
    assert rounds == {"round-0", "round-1", "round-2", "round-3"}
    assert stages_of(out)[-1] == "round-3/evaluate/search"
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "**Best: round 1**" in text
    assert "ended after round 3 of 5" in text
    assert f"| policy | {out}/round-1/policy |" in text
    again = Declining()
    loop.run(config(tmp_path, **settings), tools=again)
    assert again.calls == []


# ---------------------------------------------------------------- without known answers


@pytest.mark.parametrize("source", ["majority", "judge"])
def test_labels_without_answers_are_those_without_looking(tmp_path: Path, source: str):
    """What is trained on is the same whether or not the answers are known; where they are, it is measured how good."""
    labels = {"source": source, "confidence": 0.6}
    known, _ = run(tmp_path, "rest-mcts", "known", labels=labels)
    blank = [{"id": p.id, "question": p.question} for p in (problem(i) for i in range(12))]
    write_jsonl(tmp_path / "blank.jsonl", blank)
    out, _ = run(tmp_path, "rest-mcts", labels=labels, problems=str(tmp_path / "blank.jsonl"))
    for file in ("labels.jsonl", "policy_rows.jsonl", "value_rows.jsonl"):
        assert (out / "round-1/label" / file).read_bytes() == (known / "round-1/label" / file).read_bytes()
    quality = load_run(known).of_kind("label")[1]["metrics"]["pseudo"]
    assert 0.5 < quality["precision"] <= 1
    assert "pseudo" not in load_run(out).of_kind("label")[1]["metrics"]
    assert "Labels without known answers" in (known / "report.md").read_text(encoding="utf-8")


def test_the_labels_of_older_runs_are_still_theirs(tmp_path: Path):
    """Settings that came later are in no manifest while they are at their defaults."""
    out, _ = run(tmp_path, "rest-mcts")
    label = json.loads((out / "round-1/label/manifest.json").read_text())
    assert label["settings"] == {
        "labels": {"unsolved": "zero", "estimate": "hard"},
        "traces_per_question": 4,
        "pick": "value",
        "value_traces_per_question": 16,
        "accumulate": False,
        "keep_worked": True,
        "seed": 0,
    }
    search = json.loads((out / "round-1/search/manifest.json").read_text())
    assert set(search["settings"]) == {"search", "prompt", "seed", "questions_per_round"}
    assert set(search["inputs"]) == {"problems", "policy", "value"}


def test_a_first_value_model_needs_something_to_learn_from(tmp_path: Path):
    class Mute(JudgingAdder):
        async def propose(self, request: Propose) -> Proposals:
            return Proposals((Sample(Step(""), "end"),) * request.n)

    class MuteTools(JudgingTools):
        def load_engines(self, policy: str | Path, value: str | Path | None, examples: Sequence[Problem]) -> Engines:
            return Engines(Mute(0.5), None)

    with pytest.raises(TrainError, match=r"nothing to train the first value model on.*--worked"):
        loop.run(config(tmp_path, warm=False, heldout=None), tools=MuteTools())

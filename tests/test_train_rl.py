"""DPO and GRPO through trl: on our token ids, resumed as they began, and they do learn; with tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl", reason="preference and online training need the extra `rl`")

import torch
from safetensors.torch import load_file

from restmcts.encoding import Encoder, PromptSettings
from restmcts.errors import TrainError
from restmcts.models import load_tokenizer
from restmcts.rows import PolicyRow, PreferenceRow
from restmcts.tasks.grade import Grader
from restmcts.train import online
from restmcts.train.online import Groups, Solution, agreed, cut, step_advantages, train_online
from restmcts.train.policy import train_policy
from restmcts.train.preference import encode, train_preference
from restmcts.train.rl import rows_of_a_pass
from restmcts.train.settings import OnlineTraining, PolicyTraining, PreferenceTraining, Training
from restmcts.types import Problem, Step

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]

PROMPT = PromptSettings(instruction="Solve.")
SMALL: dict[str, Any] = {"device": "cpu", "precision": "float32"}


def pair(number: int, tokenizer: str | None = None) -> PreferenceRow:
    ids = ([[7, 8, 9]], [[10, 11]], [[12]]) if tokenizer else ([None], [None], [None])
    return PreferenceRow(
        f"p{number}", f"What is {number} + 1?", ["Well."], ids[0], tokenizer, ["Answer: 2"], ids[1], ["Hm."], ids[2],
        chosen_value=1.0, rejected_value=0.0, rejected_ends=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tiny_model_dir: Path) -> Encoder:
    return Encoder(load_tokenizer(tiny_model_dir), PROMPT)


# ---------------------------------------------------------------- preference


def test_pairs_keep_the_ids_that_were_sampled(encoder: Encoder) -> None:
    ids = encode(pair(1, encoder.tokenizer_id), encoder)
    prompt = encoder.prompt(Problem("", "What is 1 + 1?"))
    assert ids == {
        "prompt_ids": [*prompt, 7, 8, 9],
        "chosen_ids": [10, 11, *encoder.end_of_turn],
        "rejected_ids": [12],  # a step in the middle: the turn goes on
    }
    text = encode(pair(1), encoder)
    assert text["prompt_ids"] == encoder.trace(Problem("", "What is 1 + 1?"), (Step("Well."),)).ids


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_better_side_is_learned(tiny_model_dir: Path, tmp_path: Path, method: str) -> None:
    settings = PreferenceTraining(
        method=method, epochs=6, learning_rate=2e-2 if method == "lora" else 5e-3, batch_pairs=8, **SMALL
    )
    rows = [pair(i) for i in range(16)]
    shown: list[tuple[int, int]] = []
    metrics = train_preference(
        rows,
        base=tiny_model_dir,
        out=tmp_path / "out",
        prompt=PROMPT,
        settings=settings,
        on_progress=lambda step, total, loss, tokens: shown.append((step, total)),
    )
    assert shown == [(step, 12) for step in range(1, 13)]
    assert metrics["loss_first"] == pytest.approx(0.69, abs=0.1)  # −log σ(0): the reference is the policy itself
    assert metrics["loss_last"] < (0.5 if method == "full" else 0.8) * metrics["loss_first"]
    assert metrics["accuracy_last"] == 1
    assert (metrics["rows"], metrics["steps"]) == (16, 12)
    assert json.loads((tmp_path / "out" / "restmcts.json").read_text())["prompt"]["instruction"] == "Solve."
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert not (tmp_path / "out" / "README.md").exists()


def straight_and_killed(train: Callable[..., dict[str, Any]], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train once to the end, and once killed at the fourth step and begun again: metrics of both, and equal weights."""

    def kill(step: int, *_: object) -> None:
        if step == 4:
            raise KeyboardInterrupt

    straight = train("straight")
    with pytest.raises(KeyboardInterrupt):
        train("torn", kill)
    resumed = train("torn")
    assert resumed["resumed_at"] == 3
    ours, theirs = (load_file(folder / name / "model.safetensors") for name in ("torn", "straight"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    return straight, resumed


def test_a_killed_preference_training_goes_on_where_it_was(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = PreferenceTraining(method="full", epochs=3, batch_pairs=4, checkpoint_seconds=0.0, **SMALL)
    rows = [pair(i) for i in range(8)]

    def train(out: str, on_progress: Any = None) -> dict[str, Any]:
        return train_preference(
            rows, base=tiny_model_dir, out=tmp_path / out, prompt=PROMPT, settings=settings, on_progress=on_progress
        )

    straight, resumed = straight_and_killed(train, tmp_path)
    assert resumed["loss_last"] == pytest.approx(straight["loss_last"], rel=1e-4)


def test_nothing_to_prefer_is_one_line(tiny_model_dir: Path, tiny_value_dir: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"out": tmp_path / "out", "prompt": PROMPT}
    with pytest.raises(TrainError, match="there are no pairs"):
        train_preference([], base=tiny_model_dir, settings=PreferenceTraining(**SMALL), **options)
    with pytest.raises(TrainError, match="all 1 pairs are longer than max_length = 16"):
        short = PreferenceTraining(max_length=16, **SMALL)
        train_preference([pair(1)], base=tiny_model_dir, settings=short, **options)
    with pytest.raises(TrainError, match="is a value model"):
        train_preference([pair(1)], base=tiny_value_dir, settings=PreferenceTraining(**SMALL), **options)
    with pytest.raises(TrainError, match=r"none of 1 questions leaves room for online\.tokens = 256"):
        train_online([Problem("p", "?", "1")], base=tiny_model_dir, settings=OnlineTraining(max_length=256), **options)


def test_rows_of_a_pass_divide_the_batch() -> None:
    settings = Training(micro_tokens=1000, device="cpu")
    assert [rows_of_a_pass(settings, longest, 12) for longest in (10, 100, 240, 300, 2000)] == [12, 6, 4, 3, 1]


# ---------------------------------------------------------------- online


def ids_of(encoder: Encoder, *steps: str, ends: bool = True) -> list[int]:
    return [i for step in steps for i in encoder.step(Step(step))] + (list(encoder.end_of_turn) if ends else [])


def test_what_was_sampled_is_cut_into_steps_as_in_a_search(encoder: Encoder) -> None:
    ids = ids_of(encoder, "3 + 4 = 7", "Answer: 7")
    first = len(encoder.step(Step("3 + 4 = 7")))
    assert cut(ids, encoder) == [("3 + 4 = 7", first), ("Answer: 7", len(ids) - 1)]
    assert cut(list(encoder.end_of_turn), encoder) == []
    blank = ids_of(encoder, "", "a", ends=False)
    assert cut(blank, encoder) == [("a", len(blank))]
    groups = Groups([], encoder, agreed)
    problem = Problem("p", "3 + 4?", "7")
    assert groups.ended(problem, ids) == ids  # the end of the turn stays where it follows at once
    assert groups.ended(problem, [*ids[:-1], *ids]) == ids[:-1]
    unfinished = ids_of(encoder, "3 + 4 = 7")
    assert groups.ended(problem, unfinished) == unfinished
    solution = groups.read(problem, ids_of(encoder, "Answer: 8", "Answer: 7"))
    assert (solution.steps, solution.answer) == (["Answer: 8"], "8")


def test_rewards_come_from_the_verifier_or_from_the_group(encoder: Encoder) -> None:
    class State:
        global_step = 4

    problems = [Problem("p", "3 + 4?", "7"), Problem("q", "1 + 1?", "2")]
    said = [("Answer: 7", 0), ("Answer: 8", 0), ("Answer: 8.0", 0), ("7", 0), ("Answer: 2", 1), ("Answer: 3", 1)]
    ids, row = [ids_of(encoder, text) for text, _ in said], [at for _, at in said]
    kept: list[dict[str, Any]] = []
    with Grader() as grader:
        by_answer = Groups(problems, encoder, online.known(grader), keep=kept.append)
        assert by_answer.reward(completion_ids=ids, row=row, trainer_state=State()) == [1, 0, 0, 0, 1, 0]
    assert kept == [
        {"step": 5, "id": "p", "rewards": [1.0, 0.0, 0.0, 0.0]},
        {"step": 5, "id": "q", "rewards": [1.0, 0.0]},
    ]
    unknown = [Problem(p.id, p.question) for p in problems]
    by_group = Groups(unknown, encoder, agreed)
    assert by_group.reward(completion_ids=ids, row=row, trainer_state=State()) == [0, 1, 1, 0, 1, 0]


def test_process_rewards_of_a_group_by_hand() -> None:
    """Two solutions share a first step; w of Eq. 2: a 1/2, then right 1/2, wrong −1/4; the third goes wrong at once.

    The tree: root ─┬─ a ─┬─ right      m: a 1, right 0, wrong 1; b and its answer take the m of the root, which is 2.
                    │     └─ wrong
                    └─ b ── wrong
    """
    right, wrong = Solution(["a", "x"], [1, 2], "7", True), Solution(["a", "y"], [1, 2], "8")
    other = Solution(["b", "z"], [1, 2], "8")
    w = [0.5, 0.5, 0.5, -0.25, -1 / 3, -1 / 3]
    mean = sum(w) / 6
    spread = (sum((x - mean) ** 2 for x in w) / 6) ** 0.5 + 1e-4
    a, x, _, y, b, z = ((value - mean) / spread for value in w)
    found = step_advantages([right, wrong, other])
    for ahead, expected in zip(found, ([a + x, x], [a + y, y], [b + z, z]), strict=True):
        assert ahead == pytest.approx(expected)
    assert step_advantages([wrong, other, Solution([], [], None)]) == [[0, 0], [0, 0], []]


@pytest.fixture(scope="module")
def guesser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learned to answer any question with some digit."""
    from tests.tiny import tiny_model

    folder = tmp_path_factory.mktemp("guesser")
    rows = [
        PolicyRow(f"p{i}", f"Which one, {i}?", [f"Answer: {i % 5}"], [None], None, value=None, round=1)
        for i in range(60)
    ]
    settings = PolicyTraining(method="full", learning_rate=1e-2, epochs=20, batch_tokens=1024, **SMALL)
    train_policy(
        rows, base=tiny_model(folder / "base", hidden_size=64), out=folder / "out", prompt=PROMPT, settings=settings
    )
    return folder / "out"


@pytest.mark.parametrize("process_weight", [0.0, 0.5])
def test_the_reward_rises(guesser: Path, tmp_path: Path, process_weight: float) -> None:
    problems = [Problem(f"p{i}", f"Which one, {i}?", "3") for i in range(6)]
    settings = OnlineTraining(
        method="full", learning_rate=3e-3, steps=20, questions=4, samples=8, tokens=12, process_weight=process_weight,
        kl=0.01, **SMALL,
    )  # fmt: skip
    shown: list[float] = []
    metrics = train_online(
        problems,
        base=guesser,
        out=tmp_path / "out",
        prompt=PROMPT,
        settings=settings,
        on_progress=lambda step, total, reward, tokens: shown.append(reward),
    )
    assert len(shown) == 20
    assert metrics["reward_first"] == pytest.approx(sum(shown[:4]) / 4, abs=1e-6)
    assert metrics["reward_first"] < 0.6
    assert metrics["reward_last"] > metrics["reward_first"] + 0.3
    lines = [json.loads(line) for line in (tmp_path / "out" / "rewards.jsonl").read_text().splitlines()]
    assert len(lines) == 20 * 4
    assert {len(line["rewards"]) for line in lines} == {8}


def test_a_killed_online_training_goes_on_where_it_was(guesser: Path, tmp_path: Path) -> None:
    problems = [Problem(f"p{i}", f"Which one, {i}?", "3") for i in range(4)]
    settings = OnlineTraining(
        method="full", learning_rate=1e-3, steps=5, questions=2, samples=4, tokens=12, checkpoint_seconds=0.0, **SMALL
    )

    def train(out: str, on_progress: Any = None) -> dict[str, Any]:
        return train_online(
            problems, base=guesser, out=tmp_path / out, prompt=PROMPT, settings=settings, on_progress=on_progress
        )

    straight, resumed = straight_and_killed(train, tmp_path)
    assert resumed["reward_last"] == straight["reward_last"]

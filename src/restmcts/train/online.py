"""Online training: GRPO of a causal LM with restmcts' own grading as reward (Shao et al. 2024, arXiv 2402.03300).

At every step G solutions of each of some questions are sampled; a right one is rewarded with 1, any other with 0, and
its advantage is its reward less its group's mean, over the group's standard deviation. trl samples and learns; prompts,
steps and answers are found here as a search finds them, and a solution ends, as it does there, with the first step that
holds an answer.

With `process_weight` λ > 0 the advantage of a token is that plus λ · Σ ŵ_j over the steps j from its own on. ŵ are the
weighted rewards w (Eq. 2) of the tree that the group's solutions make, normalised over all steps of the group: the
process supervision of that paper (its section 4.1.3), with rewards that no one had to label.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from restmcts.encoding import Encoder, PromptSettings
from restmcts.errors import TrainError
from restmcts.files import JsonlWriter
from restmcts.rewards import process_rewards
from restmcts.rows import REWARDS
from restmcts.tasks import get_task
from restmcts.tasks.grade import Grader
from restmcts.trackers import Tracking
from restmcts.train.common import (
    OnProgress,
    fingerprint_of,
    mark_trained,
    one_line_errors,
    save_trained,
    trained_before,
)
from restmcts.train.rl import first_and_last, name_of, open_policy, rows_of_a_pass, train_with, trl_arguments
from restmcts.train.settings import OnlineTraining
from restmcts.types import Problem

Verdicts = Callable[[Problem, Sequence[str | None]], list[bool]]
"""which of a group's answers are right; None is a solution without an answer"""


def train_online(
    problems: Sequence[Problem],
    *,
    base: str | Path,
    out: Path,
    prompt: PromptSettings,
    settings: OnlineTraining,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    tracking: Tracking = Tracking(),  # noqa: B008 (frozen)
    consensus: bool = False,
) -> dict[str, Any]:
    """Train the policy `base` on `problems` and write it to the folder `out`, as `policy.train_policy` does.

    With `consensus` no known answer is read: right is what most of the group says (TTRL, arXiv 2504.16084). Called
    again after having been killed, it goes on from its last checkpoint. Returns metrics: `reward_first` and
    `reward_last` are the mean rewards of the first and the last fifth of the steps. Raises TrainError when there is
    nothing to train on, the loss is not finite, or memory runs out; TaskError for a problem without an answer.
    """
    with one_line_errors(settings, out), Grader() as grader, ExitStack() as stack:
        opened = open_policy(base, prompt, settings)
        prompts = [opened.encoder.prompt(problem) for problem in problems]
        fitting = _fitting(prompts, settings)
        asked = min(settings.questions, len(fitting))
        order = plan_questions(fitting, asked, settings.steps, seed)
        questions = [[problems[i].id, problems[i].question, problems[i].answer] for i in fitting]
        training = fingerprint_of(settings.steps, settings, (*name_of(base, "online", seed), consensus), questions)
        done = trained_before(out, training)
        if done is not None:
            return done
        rows = asked * settings.samples
        length = max(len(prompts[i]) for i in fitting) + settings.tokens
        per_pass = rows_of_a_pass(settings, length, rows)
        shape = {"per_pass": per_pass, "passes": rows // per_pass}
        mixed = opened.precision.mixed
        arguments = trl_arguments(settings, settings.steps, out, seed, mixed, tracking, **shape)
        verdicts = agreed if consensus else known(grader)
        rewards = stack.enter_context(closing(JsonlWriter(out / REWARDS)))
        groups = Groups(problems, opened.encoder, verdicts, keep=rewards.write)
        trainer = GroupTrainer(
            groups=groups,
            process_weight=settings.process_weight,
            model=opened.model,
            reward_funcs=groups.reward,
            args=_grpo(settings, arguments),
            train_dataset=Dataset.from_list([{"prompt": problems[i].question, "row": i} for i in order]),
            processing_class=opened.tokenizer,
            peft_config=opened.lora,
        )
        metrics = train_with(
            trainer, opened, settings, settings.steps, training=training, on_progress=on_progress, shown="reward"
        )
        metrics |= _outcome(trainer.state.log_history)
        save_trained(trainer.model, out, opened.precision.stored, opened.tokenizer, prompt, seed)
        facts = {"rows": len(fitting), "rows_too_long": len(problems) - len(fitting)}
        return mark_trained(out, training, facts | metrics)


def _fitting(prompts: Sequence[Sequence[int]], settings: OnlineTraining) -> list[int]:
    """The questions whose prompt leaves room for a solution. Raises TrainError when none does."""
    longest = settings.max_length - settings.tokens
    fitting = [i for i, ids in enumerate(prompts) if len(ids) <= longest]
    if not fitting:
        raise TrainError(
            f"none of {len(prompts)} questions leaves room for online.tokens = {settings.tokens} within "
            f"max_length = {settings.max_length} tokens: raise max_length"
        )
    return fitting


def _grpo(settings: OnlineTraining, arguments: dict[str, Any]) -> GRPOConfig:
    return GRPOConfig(
        **arguments,
        max_steps=settings.steps,
        num_generations=settings.samples,
        max_completion_length=settings.tokens,
        temperature=settings.temperature,
        beta=settings.kl,
        shuffle_dataset=False,
    )


def _outcome(logs: Sequence[dict[str, Any]]) -> dict[str, float]:
    named = {
        "reward": "reward",
        "completions/mean_length": "length",
        "entropy": "entropy",
        "frac_reward_zero_std": "silent",
    }
    return {key: value for name, called in named.items() for key, value in first_and_last(logs, name, called).items()}


def plan_questions(questions: Sequence[int], asked: int, steps: int, seed: int) -> list[int]:
    """The questions of all steps, `asked` different ones for each: fixed beforehand, so that a resumed training asks
    what a straight one would have asked. Each pass through them goes in a new order."""
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < steps * asked:
        order += rng.sample(questions, len(questions) // asked * asked)
    return order[: steps * asked]


# ---------------------------------------------------------------- which answers are right


def known(grader: Grader) -> Verdicts:
    """Right by the known answer."""

    def verdicts(problem: Problem, answers: Sequence[str | None]) -> list[bool]:
        return [answer is not None and grader.grade(problem, answer) for answer in answers]

    return verdicts


def agreed(problem: Problem, answers: Sequence[str | None]) -> list[bool]:
    """Right is what most of the group says; the earlier answer wins a tie."""
    task = get_task(problem.task)
    keys = [None if answer is None else task.key(answer) for answer in answers]
    said = [key for key in keys if key is not None]
    most = max(said, key=said.count, default=None)
    return [key is not None and key == most for key in keys]


# ---------------------------------------------------------------- groups of solutions


@dataclass(slots=True)
class Solution:
    """A sampled solution: its steps, where each ends in its token ids, and its answer."""

    steps: list[str]
    ends: list[int]
    answer: str | None
    right: bool = False


@dataclass(slots=True)
class Groups:
    """Reads what was sampled and rewards it. `latest` are the solutions of the last batch, in its order."""

    problems: Sequence[Problem]
    encoder: Encoder
    verdicts: Verdicts
    latest: list[Solution] = field(default_factory=list)
    keep: Callable[[dict[str, Any]], None] | None = None
    """is given the rewards of each question at each step"""

    def read(self, problem: Problem, ids: Sequence[int]) -> Solution:
        """The steps of sampled `ids`, up to the first that holds an answer."""
        task = get_task(problem.task)
        solution = Solution([], [], None)
        for text, end in cut(ids, self.encoder):
            solution.steps.append(text)
            solution.ends.append(end)
            solution.answer = task.find_answer(text)
            if solution.answer is not None:
                break
        return solution

    def ended(self, problem: Problem, ids: list[int]) -> list[int]:
        """Sampled `ids` without what comes after the answer; an end of the turn right behind it stays."""
        solution = self.read(problem, ids)
        if solution.answer is None:
            return ids
        end = solution.ends[-1]
        return ids[: end + (ids[end : end + 1] != [] and ids[end] in self.encoder.end_ids)]

    def reward(
        self, *, completion_ids: Sequence[Sequence[int]], row: Sequence[int], trainer_state: Any, **_: Any
    ) -> list[float]:
        """1 for a right solution, 0 for any other."""
        self.latest = [self.read(self.problems[at], ids) for at, ids in zip(row, completion_ids, strict=True)]
        for at, members in grouped(row).items():
            problem = self.problems[at]
            answers = [self.latest[i].answer for i in members]
            for i, right in zip(members, self.verdicts(problem, answers), strict=True):
                self.latest[i].right = right
            rewards = [float(self.latest[i].right) for i in members]
            if self.keep is not None:
                self.keep({"step": int(trainer_state.global_step) + 1, "id": problem.id, "rewards": rewards})
        return [float(solution.right) for solution in self.latest]


def grouped(row: Sequence[int]) -> dict[int, list[int]]:
    """The places in a batch of each question's solutions."""
    members: dict[int, list[int]] = {}
    for place, at in enumerate(row):
        members.setdefault(at, []).append(place)
    return members


def cut(ids: Sequence[int], encoder: Encoder) -> list[tuple[str, int]]:
    """Generated ids as steps, each with the place after its last token, as the engines cut them while generating.

    A step ends with the token that holds the delimiter, or before the end of the turn.
    """
    steps: list[tuple[str, int]] = []
    start = 0
    for at, token in enumerate(ids):
        over = token in encoder.end_ids
        text, found, _ = encoder.decode(ids[start : at + (not over)]).lstrip().partition(encoder.delimiter)
        if over or found:
            if text.strip():
                steps.append((text.strip(), at + (not over)))
            start = at + 1
        if over:
            return steps
    rest = encoder.decode(ids[start:]).strip()
    return [*steps, (rest, len(ids))] if rest else steps


def step_advantages(solutions: Sequence[Solution]) -> list[list[float]]:
    """Σ ŵ_j over the steps from each step on, for the solutions of one question.

    ŵ are the weighted rewards w of the tree that the solutions make, less their mean, over their standard deviation.
    """
    parent, correct = [-1], [None]
    verdicts: list[bool | None] = list(correct)
    nodes: dict[tuple[int, str], int] = {}
    paths: list[list[int]] = []
    for solution in solutions:
        at, path = 0, []
        for text in solution.steps:
            if (at, text) not in nodes:
                nodes[at, text] = len(parent)
                parent.append(at)
                verdicts.append(None)
            at = nodes[at, text]
            path.append(at)
        if path:
            verdicts[at] = solution.right
        paths.append(path)
    w = process_rewards(parent, verdicts).w.tolist()
    rewards = [w[node] for path in paths for node in path]
    mean, spread = (fmean(rewards), pstdev(rewards)) if rewards else (0.0, 0.0)
    found = []
    for path in paths:
        ahead, total = [], 0.0
        for node in reversed(path):
            total += (w[node] - mean) / (spread + 1e-4)
            ahead.append(total)
        found.append(ahead[::-1])
    return found


# ---------------------------------------------------------------- trl's trainer


class GroupTrainer(GRPOTrainer):
    """trl's trainer with restmcts' prompts, solutions that end as in a search, and process rewards."""

    def __init__(self, *, groups: Groups, process_weight: float, **options: Any) -> None:
        super().__init__(**options)
        self.groups, self.process_weight = groups, process_weight
        self.rows: list[int] = []
        """of the batch at work: which question each solution is of"""

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """The ids that a search begins with."""
        return [self.groups.encoder.prompt(Problem("", question)) for question in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: Any, *options: Any, **named: Any) -> Any:
        """As trl's, cut after the step that holds the answer; the end of the turn stays where it follows at once."""
        made, logprobs = super()._generate_single_turn(prompt_ids, *options, **named)
        problems = [self.groups.problems[at] for at in self.rows]
        return [self.groups.ended(problem, ids) for problem, ids in zip(problems, made, strict=True)], logprobs

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.rows = [entry["row"] for entry in inputs]
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.process_weight:
            whole = output["advantages"]
            dense = torch.zeros(output["completion_ids"].shape, dtype=whole.dtype)
            for members in grouped(self.rows).values():
                solutions = [self.groups.latest[i] for i in members]
                for i, solution, ahead in zip(members, solutions, step_advantages(solutions), strict=True):
                    for start, advantage in zip([0, *solution.ends], ahead, strict=False):
                        dense[i, start:] = advantage  # the end of the turn shares that of the last step
            output["advantages"] = whole[:, None] + self.process_weight * dense.to(whole.device)
        return output

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: checkpoints are for going on, not for publishing."""

"""Engines without a model: their replies come from a function. For tests, and for trying things out.

`ScriptedPolicy` and `ScriptedValue` run any function as an engine. `scripted_engines` opens the built-in pair that the
command line knows as `scripted`: a noisy solver of arithmetic questions, and a checker that values its steps.

    engines = Engines(ScriptedPolicy(lambda request, seed: "Answer: 4"), ScriptedValue(lambda problem, path: 0.5))

A word counts as a token here. Replies depend on problem, path and seed alone, never on what else is being asked;
`latency` shuffles the order in which they arrive, to show that it makes no difference.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from restmcts.engines import Busy, Engines
from restmcts.seeds import derive_seed
from restmcts.types import Critique, Path, Problem, Proposals, Propose, Sample, Score, Scores, Step, Usage, Verdict

Script = Callable[[Propose, int], Sample | str]
"""(request, seed of the sample) → the next step; a str is a step that ended at the delimiter"""


class _Scripted:
    """What both engines have: a name, no token ids, and a delay."""

    def __init__(self, identity: str, latency: float, order: int) -> None:
        self.identity = identity
        self.tokenizer_id: str | None = None
        self._latency = latency
        self._delays = random.Random(order)
        self._busy = Busy()

    @property
    def busy_seconds(self) -> float:
        """Seconds in which at least one request was being worked on."""
        return self._busy.seconds

    async def _wait(self) -> None:
        await asyncio.sleep(self._latency and self._latency * self._delays.random())

    async def close(self) -> None:
        """Nothing to close."""


class ScriptedPolicy(_Scripted):
    """A policy that proposes what `script` says and criticises with `critic` (None: no advice, never solved).

    At temperature 0 the seed of a sample depends on the question and the path alone. `latency` is the longest delay of
    a reply in seconds; `order` seeds the delays.
    """

    def __init__(
        self,
        script: Script,
        critic: Callable[[Critique], Verdict] | None = None,
        *,
        identity: str = "scripted-policy",
        latency: float = 0.0,
        order: int = 0,
    ) -> None:
        super().__init__(identity, latency, order)
        self._script = script
        self._critic = critic

    async def propose(self, request: Propose) -> Proposals:
        with self._busy:
            await self._wait()
            return self._proposals(request)

    def _proposals(self, request: Propose) -> Proposals:
        greedy = derive_seed("greedy", request.problem.question, *(step.text for step in request.path))
        samples, spent = [], 0
        for i in range(request.first, request.first + request.n):
            seed = derive_seed(request.seed, i) if request.temperature > 0 else greedy
            said = self._script(request, seed)
            sample = Sample(Step(said), "step") if isinstance(said, str) else said
            words = sample.step.text.split()
            if len(words) + 1 > request.max_tokens:  # the delimiter is a token too
                sample = Sample(Step(" ".join(words[: request.max_tokens])), "length")
            tokens = min(len(words) + 1, request.max_tokens)
            spent += tokens
            samples.append(replace(sample, tokens=tokens))
        prompt = _words(request.problem, request.path)
        return Proposals(tuple(samples), Usage(policy_tokens=spent, prompt_tokens=prompt, requests=1))

    async def critique(self, request: Critique) -> Verdict:
        with self._busy:
            await self._wait()
            return self._verdict(request)

    def _verdict(self, request: Critique) -> Verdict:
        verdict = Verdict(solved=False) if self._critic is None else self._critic(request)
        spent = min(len((verdict.advice or "solved").split()), request.max_tokens)
        prompt = _words(request.problem, request.path)
        usage = Usage(policy_tokens=spent, prompt_tokens=prompt, requests=1)
        return Verdict(verdict.solved, verdict.advice, usage)


class ScriptedValue(_Scripted):
    """A value model that says what `script` says of (problem, path); the path is never empty."""

    def __init__(
        self,
        script: Callable[[Problem, Path], float],
        *,
        identity: str = "scripted-value",
        latency: float = 0.0,
        order: int = 1,
    ) -> None:
        super().__init__(identity, latency, order)
        self._script = script

    async def score(self, request: Score) -> Scores:
        with self._busy:
            await self._wait()
            return self._scores(request)

    def _scores(self, request: Score) -> Scores:
        values = tuple(self._script(request.problem, path) for path in request.paths)
        tokens = tuple(_words(request.problem, path) for path in request.paths)
        return Scores(values, Usage(value_tokens=sum(tokens), requests=1), tokens)


def _words(problem: Problem, path: Path) -> int:
    return len(problem.question.split()) + len(" ".join([step.text for step in path]).split()) + len(path)


# ---------------------------------------------------------------- the built-in pair


def load_scripted(*, latency: float = 0.0, order: int = 0) -> tuple[ScriptedPolicy, ScriptedValue]:
    """The noisy arithmetic solver and the checker of its steps."""
    policy = ScriptedPolicy(solve_step, advise, identity="scripted-solver", latency=latency, order=order)
    value = ScriptedValue(check_steps, identity="scripted-checker", latency=latency, order=order + 1)
    return policy, value


def scripted_engines(*, latency: float = 0.0, order: int = 0) -> Engines:
    """`load_scripted` as the pair that a search is given."""
    return Engines(*load_scripted(latency=latency, order=order))


def load_value(*_: object) -> ScriptedValue:
    """The value engine alone; there is nothing to choose."""
    return load_scripted()[1]


def load_engines(*_: object) -> Engines:
    """The pair, whatever models, prompt and settings are asked for (see `opening.ENGINES`)."""
    return scripted_engines()


def solve_step(request: Propose, seed: int) -> Sample | str:
    """The next step of working out the question's expression, at times with a mistake.

    Mistakes are likelier at higher temperature and rarer with advice. Without a number in the question it gives up.
    """
    chance = random.Random(seed)
    left = _follow(read_expression(request.problem.question), request.path).left
    if not left:
        return Sample(Step("There is nothing to work out here."), "end")
    if request.temperature > 0 and chance.random() < 0.02:
        return Sample(Step("Let me think about this again."), "end")
    operation = _next_operation(left)
    if operation is None:
        return Sample(Step(f"Answer: {left[-1]}"), "end")
    a, sign, b = operation
    result = _apply(a, sign, b)
    mistakes = (0.08 + 0.2 * request.temperature) * (0.5 if request.advice else 1.0)
    if chance.random() < mistakes:
        result += chance.choice((-10, -2, -1, 1, 2, 10))
    opening = chance.choice(("", "", "", "Next, ", "Then ")) if request.temperature > 0 else ""
    return f"{opening}{a} {sign} {b} = {result}"


def advise(request: Critique) -> Verdict:
    """Solved when only the answer is left to be stated; otherwise, which operation comes next."""
    operation = _next_operation(_follow(read_expression(request.problem.question), request.path).left)
    if operation is None:
        return Verdict(solved=True)
    a, sign, b = operation
    return Verdict(solved=False, advice=f"Work out {a} {sign} {b} next.")


def check_steps(problem: Problem, path: Path) -> float:
    """k/K after k right steps of K; a quarter of that from the first mistake on. With a little noise of its own."""
    expression = read_expression(problem.question)
    after = _follow(expression, path)
    steps = sum(isinstance(token, str) for token in expression) + 1
    noise = random.Random(derive_seed("noise", problem.question, *(step.text for step in path))).gauss(0, 0.03)
    share = min(after.right / steps, 1.0)
    return min(max((share if after.sound else share / 4) + noise, 0.0), 1.0)


# ---------------------------------------------------------------- arithmetic

Postfix = list[int | str]
"""an expression in postfix order: its first sign stands right after the two numbers it belongs to"""

_SIGNS = {"+": 1, "-": 1, "*": 2}
_TOKEN = re.compile(r"(\d+)|([-+*()])")
_EXPRESSION = re.compile(r"[-( ]{0,20}\d[\d\s+*()-]*")
_STEP = re.compile(r"(-?\d+) ([-+*]) (-?\d+) = (-?\d+)\s*$")
_ANSWER = re.compile(r"Answer: (-?\d+)\s*$")
_MAX_DIGITS = 18
"""longer numbers are left alone: this is a toy"""


def read_expression(question: str) -> Postfix:
    """The longest expression of +, - and * in the question, in postfix order.

    In a word problem, which holds none, the sum of its numbers; empty where there is no number either.
    """
    plain = question.translate(str.maketrans("×·−–", "**--"))
    found = [expression for match in _EXPRESSION.finditer(plain) if (expression := _to_postfix(match.group()))]
    longest = max(found, key=len, default=[])
    if len(longest) > 1:
        return longest
    numbers = [int(digits) for digits in re.findall(r"\d+", plain) if len(digits) <= _MAX_DIGITS]
    total: Postfix = [*numbers[:1]]
    for number in numbers[1:]:
        total += [number, "+"]
    return total


def _to_postfix(text: str) -> Postfix | None:
    """`text` in postfix order, by the usual precedence; None when it is no expression."""
    output: Postfix = []
    signs: list[str] = []
    operand_next, negative = True, False
    for match in _TOKEN.finditer(text):
        digits, sign = match.groups()
        if digits is not None:
            if not operand_next or len(digits) > _MAX_DIGITS:
                return None
            output.append(-int(digits) if negative else int(digits))
            operand_next = negative = False
        elif operand_next:
            if negative or sign in "+*)":
                return None
            if sign == "(":
                signs.append(sign)
            else:
                negative = True
        elif sign == ")":
            while signs and signs[-1] != "(":
                output.append(signs.pop())
            if not signs:
                return None
            signs.pop()
        elif sign == "(":
            return None
        else:
            while signs and signs[-1] != "(" and _SIGNS[signs[-1]] >= _SIGNS[sign]:
                output.append(signs.pop())
            signs.append(sign)
            operand_next = True
    if operand_next or "(" in signs:
        return None
    return output + signs[::-1]


class _State(NamedTuple):
    """How far a path got."""

    left: Postfix
    """what is still to be worked out, with the results the path claims"""
    right: int
    """how many of its steps are right"""
    sound: bool
    """whether all of them are"""


def _follow(expression: Postfix, path: Sequence[Step]) -> _State:
    """Take the path's word for its results; a step that is none of this expression's changes nothing and is wrong."""
    left, right = list(expression), 0
    for step in path:
        operation = _next_operation(left)
        if operation is None:
            stated = _ANSWER.search(step.text)
            right += bool(left) and stated is not None and int(stated[1]) == left[-1]
            continue
        stated = _STEP.search(step.text)
        if stated is None or (int(stated[1]), stated[2], int(stated[3])) != operation:
            continue
        result = int(stated[4])
        right += result == _apply(*operation)
        at = _first_sign(left)
        left[at - 2 : at + 1] = [result]
    return _State(left, right, right == len(path))


def _first_sign(expression: Postfix) -> int:
    return next((i for i, token in enumerate(expression) if isinstance(token, str)), 0)


def _next_operation(expression: Postfix) -> tuple[int, str, int] | None:
    at = _first_sign(expression)
    if not at:
        return None
    a, b, sign = expression[at - 2], expression[at - 1], expression[at]
    return (a, sign, b) if isinstance(a, int) and isinstance(b, int) and isinstance(sign, str) else None


def _apply(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b

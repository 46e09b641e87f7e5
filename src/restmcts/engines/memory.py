"""Engines that remember what they said about the questions at hand, so that equal requests are paid for once.

Many searches of one question ask the same things: chains that vote in several ways, one method at several budgets.
`Memory` stands between them and the engines. Sample i of a request depends on the request's seed and i alone, and a
value on its path alone; so a request is served with what was said before, only what is lacking is asked for, and equal
requests at one time wait for one another. The usage of a reply is what it would have cost alone: what a search costs is
the same whether or not others asked before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from restmcts.engines import Engines, PolicyEngine, TransientError, ValueEngine
from restmcts.types import Critique, Path, Proposals, Propose, Sample, Score, Scores, Usage, Verdict

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
R = TypeVar("R", Proposals, Verdict, Scores)


class Pay(Protocol):
    """Told what each request that was really made has cost; `account.Count.add` is one."""

    def __call__(self, cost: Usage, *, of_value: bool) -> None: ...


class Memory:
    """`engines` with a memory; `pay` is told what is really asked of them. Replies are kept until `forget`."""

    def __init__(self, engines: Engines, pay: Pay) -> None:
        self._notes: dict[str, _Notes] = {}
        value = None if engines.value is None else _RememberingValue(engines.value, self._about, pay)
        self.engines = Engines(_RememberingPolicy(engines.policy, self._about, pay), value, engines.kind)

    def forget(self, problem_id: str) -> None:
        """Drop all replies about a question."""
        self._notes.pop(problem_id, None)

    def __len__(self) -> int:
        """How many questions are remembered."""
        return len(self._notes)

    def _about(self, problem_id: str) -> _Notes:
        return self._notes.setdefault(problem_id, _Notes())


class _Known(Generic[K, V]):
    """Replies by what was asked, and what is being asked for."""

    def __init__(self) -> None:
        self.said: dict[K, V] = {}
        self.asked: dict[Hashable, asyncio.Event] = {}

    def get(self, key: K) -> V | None:
        """The reply to `key`, None where it is still to be asked for."""
        return self.said.get(key)

    def topic(self, key: K) -> Hashable:
        """What `key` asks about: while that is being asked, it is worth waiting for."""
        return key

    async def fill(self, keys: Sequence[K], ask: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]]) -> list[V]:
        """The replies to `keys`: `ask` for those that nobody has or is asking for, and wait for those that others ask.

        What another's request failed to bring is asked for again. Where `ask` brings less than it was asked for, there
        are fewer replies.
        """
        while lacking := [key for key in dict.fromkeys(keys) if self.get(key) is None]:
            mine = [key for key in lacking if self.topic(key) not in self.asked]
            if not mine:
                await self.asked[self.topic(lacking[0])].wait()
                continue
            answered = asyncio.Event()
            self.asked.update((self.topic(key), answered) for key in mine)
            try:
                self.said.update(await ask(mine))
            finally:
                for key in mine:
                    del self.asked[self.topic(key)]
                answered.set()
            if any(self.get(key) is None for key in mine):
                break
        return [said for key in keys if (said := self.get(key)) is not None]


class _Pool(_Known[tuple[int, int], Sample]):
    """The samples of one request, by their number and the most tokens that they might have.

    A sample that came to its end within fewer tokens is the same under any limit that leaves it as many.
    """

    prompt: Usage | None = None
    """what the prompt cost"""

    def __init__(self) -> None:
        super().__init__()
        self._whole: dict[int, Sample] = {}

    def get(self, key: tuple[int, int]) -> Sample | None:
        number, most = key
        whole = self._whole.get(number)
        return whole if whole is not None and (whole.tokens or 0) <= most else self.said.get(key)

    def topic(self, key: tuple[int, int]) -> int:
        return key[0]

    def put(self, number: int, sample: Sample) -> None:
        """Keep a sample that no limit cut, and of which the engine says how many tokens it has."""
        if sample.finish != "length" and sample.tokens is not None:
            self._whole[number] = sample


@dataclass(slots=True)
class _Notes:
    """All that was said about one question."""

    pools: dict[Hashable, _Pool] = field(default_factory=dict)
    verdicts: _Known[Hashable, Verdict] = field(default_factory=_Known)
    values: _Known[Path, tuple[float, int]] = field(default_factory=_Known)


class _Remembering:
    """What both engines have."""

    def __init__(self, engine: PolicyEngine | ValueEngine, about: Callable[[str], _Notes], pay: Pay) -> None:
        self.identity = engine.identity
        self.tokenizer_id = engine.tokenizer_id
        self._about, self._pay = about, pay
        self._inner = engine

    @property
    def busy_seconds(self) -> float:
        """Seconds in which the engine itself had something to do."""
        return self._inner.busy_seconds

    async def close(self) -> None:
        await self._inner.close()

    async def _paid(self, reply: Awaitable[R], *, of_value: bool) -> R:
        """The engine's reply, its cost told."""
        try:
            said = await reply
        except TransientError as error:
            self._pay(error.usage, of_value=of_value)
            raise
        self._pay(said.usage, of_value=of_value)
        return said


class _RememberingPolicy(_Remembering):
    def __init__(self, policy: PolicyEngine, about: Callable[[str], _Notes], pay: Pay) -> None:
        super().__init__(policy, about, pay)
        self._policy = policy

    async def propose(self, request: Propose) -> Proposals:
        seed = request.seed if request.temperature > 0 else None  # greedy samples are the same whatever it is
        pool = self._about(request.problem.id).pools.setdefault(
            (request.path, request.advice, request.temperature, seed), _Pool()
        )
        most = request.max_tokens

        async def ask(lacking: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Sample]:
            first, n = lacking[0][0], lacking[-1][0] - lacking[0][0] + 1
            reply = await self._paid(self._policy.propose(replace(request, first=first, n=n)), of_value=False)
            pool.prompt = pool.prompt or replace(reply.usage, policy_tokens=0)
            for number, sample in enumerate(reply.samples, start=first):
                pool.put(number, sample)
            return {(number, most): sample for number, sample in enumerate(_costed(reply), start=first)}

        numbers = range(request.first, request.first + request.n)
        samples = tuple(await pool.fill([(number, most) for number in numbers], ask))
        generated = sum(sample.tokens or 0 for sample in samples)
        return Proposals(samples, replace(pool.prompt or Usage(), policy_tokens=generated))

    async def critique(self, request: Critique) -> Verdict:
        key = (request.path, request.seed, request.max_tokens)
        verdicts = self._about(request.problem.id).verdicts

        async def ask(_: Sequence[Hashable]) -> dict[Hashable, Verdict]:
            return {key: await self._paid(self._policy.critique(request), of_value=False)}

        (verdict,) = await verdicts.fill([key], ask)
        return verdict


class _RememberingValue(_Remembering):
    def __init__(self, value: ValueEngine, about: Callable[[str], _Notes], pay: Pay) -> None:
        super().__init__(value, about, pay)
        self._value = value

    async def score(self, request: Score) -> Scores:
        values = self._about(request.problem.id).values

        async def ask(lacking: Sequence[Path]) -> dict[Path, tuple[float, int]]:
            scores = await self._paid(self._value.score(replace(request, paths=tuple(lacking))), of_value=True)
            if len(scores.values) != len(lacking):
                return {}  # which value is whose? `drive` will say that some are missing
            costs = scores.tokens or _shared_out(scores.usage.value_tokens, len(lacking))
            return dict(zip(lacking, zip(scores.values, costs, strict=True), strict=True))

        found = await values.fill(request.paths, ask)
        costs = tuple(cost for _, cost in found)
        return Scores(tuple(value for value, _ in found), Usage(value_tokens=sum(costs), requests=1), costs)


def _costed(reply: Proposals) -> Sequence[Sample]:
    """The samples, each with what it cost; where the engine does not say, the cost is shared out evenly."""
    if all(sample.tokens is not None for sample in reply.samples):
        return reply.samples
    costs = _shared_out(reply.usage.policy_tokens, len(reply.samples))
    return [replace(sample, tokens=cost) for sample, cost in zip(reply.samples, costs, strict=True)]


def _shared_out(total: int, parts: int) -> list[int]:
    """`total` as a sum of so many whole numbers that are as equal as can be."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]

"""A search tree in the words of the protocol: one completion, or a stream of pieces of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from restmcts.search.nodes import path_value
from restmcts.serve.refusal import Refusal
from restmcts.serve.request import OWN, Asked
from restmcts.types import Ask, Propose, Tree

DONE = b"data: [DONE]\n\n"
_CHAINS = frozenset({"sample", "best_of_n", "weighted_vote"})
"""methods that draw a single chain of thought where they draw one sample"""


def grows_straight(asked: Asked) -> bool:
    """Whether the search is a single chain, so that each step is decided as soon as it is drawn."""
    settings = asked.errand.settings
    return settings.method == "cot" or (settings.method in _CHAINS and settings.samples == 1)


def steps_so_far(request: Ask) -> list[str] | None:
    """The steps that a single chain has when it asks for the next one."""
    return [step.text for step in request.path] if isinstance(request, Propose) else None


def chosen_nodes(tree: Tree) -> list[int]:
    """The path to what is answered: the search's result, or where nothing was finished the most that there is.

    That is an ending of the policy's own, without a marked answer, before one that was cut off; the best valued one,
    then the longest. Empty when there are no steps at all.
    """
    if tree.result is not None:
        return tree.nodes_to(tree.result)
    said = [n for n in range(1, len(tree)) if tree.text[n].strip()]
    going_on = {tree.parent[n] for n in said}
    ends = [n for n in said if n not in going_on]

    def worth(node: int) -> tuple[bool, float, int]:
        path = tree.nodes_to(node)
        known = [v for n in path if (v := tree.raw_value[n]) is not None]
        return tree.reason[node] == "ended", known[-1] if known else 0.0, len(path)

    return tree.nodes_to(max(ends, key=worth)) if ends else []


def check_failed(tree: Tree) -> None:
    """Raise Refusal when there is no answer because the engine failed."""
    if tree.result is None and tree.failures:
        raise Refusal(503, f"the search found no answer: {tree.failures[0]}", code="engine_failed", wait=5)


def usage_of(tree: Tree) -> dict[str, Any]:
    """What the search cost, in the protocol's words: completion tokens are all that the policy generated."""
    cost = tree.usage
    return {
        "prompt_tokens": cost.prompt_tokens,
        "completion_tokens": cost.policy_tokens,
        "total_tokens": cost.prompt_tokens + cost.policy_tokens,
        "prompt_tokens_details": {"cached_tokens": cost.cached_tokens},
    }


class Reply:
    """One completion in the making. `fingerprint` names models and software."""

    def __init__(self, asked: Asked, number: str, fingerprint: str) -> None:
        self.asked = asked
        self._head = {"id": number, "created": int(time.time()), "model": asked.model}
        self._head["system_fingerprint"] = fingerprint
        self._said = 0
        self._cut = Cut(asked.stop)

    def whole(self, tree: Tree) -> dict[str, Any]:
        """The completion. Raises Refusal when there is none because the engine failed."""
        check_failed(tree)
        text = self._text_of([tree.text[n] for n in chosen_nodes(tree)]) + self._cut.rest()
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish(tree)}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage_of(tree),
            OWN: self.own(tree),
        }

    def begin(self) -> bytes:
        """The event that a stream begins with."""
        return self._event({"role": "assistant", "content": ""})

    def more(self, steps: Sequence[str]) -> bytes:
        """The event for those of `steps`, counted from the first, that were not sent yet; empty when there are none."""
        text = self._text_of(steps)
        return self._event({"content": text}) if text else b""

    def end(self, tree: Tree) -> Iterable[bytes]:
        """The events that are left when the search is done. Raises Refusal as `whole` does."""
        check_failed(tree)
        text = self._text_of([tree.text[n] for n in chosen_nodes(tree)]) + self._cut.rest()
        if text:
            yield self._event({"content": text})
        yield self._event({}, finish_reason=self.finish(tree), **{OWN: self.own(tree)})
        if self.asked.with_usage:
            yield self._line({"choices": [], "usage": usage_of(tree)})

    def finish(self, tree: Tree) -> str:
        """`stop`: there is an answer, or the policy ended by itself; `length`: a limit came before."""
        nodes = chosen_nodes(tree)
        ended = tree.result is not None or (bool(nodes) and tree.reason[nodes[-1]] == "ended")
        return "stop" if ended or self._cut.done else "length"

    def own(self, tree: Tree) -> dict[str, Any]:
        """What the protocol has no words for."""
        how = self.asked.errand.settings.step_aggregation
        value = None if tree.result is None else path_value(tree, tree.result, how)
        facts: dict[str, Any] = {
            "method": tree.method,
            "seed": self.asked.errand.seed,
            "answer": tree.final_answer,
            "value": value,
            "stop": tree.stop,
            "nodes": len(tree) - 1,
            "finished": len(tree.finished()),
            "failures": len(tree.failures),
            "usage": asdict(tree.usage),
        }
        return facts | ({"tree": tree.to_record()} if self.asked.with_tree else {})

    def _text_of(self, steps: Sequence[str]) -> str:
        """The text of the steps that were not said yet, as far as it may be said."""
        text = "".join(f"\n{step}" if at else step for at, step in enumerate(steps) if at >= self._said)
        self._said = max(self._said, len(steps))
        return self._cut.feed(text)

    def _event(self, delta: dict[str, Any], *, finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._line({"choices": [choice], **more})

    def _line(self, facts: dict[str, Any]) -> bytes:
        return event({**self._head, "object": "chat.completion.chunk", **facts})


class Cut:
    """Text up to the first of some texts, however it comes in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        """what may be the beginning of a stop"""
        self.done = False

    def feed(self, text: str) -> str:
        """What can be said for certain now that `text` has come."""
        if self.done:
            return ""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.done, self._held = True, ""
            return text[: min(found)]
        keep = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held


def event(facts: dict[str, Any]) -> bytes:
    """An event of a stream. ASCII, for a model may write half a character."""
    return f"data: {json.dumps(facts, separators=(',', ':'))}\n\n".encode()


def comment(text: str) -> bytes:
    """A line of a stream that clients pass over."""
    return f": {text}\n\n".encode()

"""What a server's reply says: its choices in order, what they cost, and nothing that it does not say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from restmcts.encoding import whole_characters
from restmcts.engines.server import Junk

MOST_CHARACTERS = 256
"""a token's characters at the very most; a text longer than its tokens allow is no answer"""
_WHOLE = frozenset({"stop", "length", "eos", "eos_token", "stop_sequence"})


@dataclass(frozen=True, slots=True)
class Choice:
    """One text of a reply."""

    text: str
    finish: str
    """stop or length"""
    matched: str | None
    """what ended it, where the server says: `stop` for a stop string, `end` for the model's own end"""
    ids: tuple[int, ...] | None
    logprobs: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply with at least one usable choice. Counts are None where the server does not give them."""

    choices: tuple[Choice, ...]
    prompt_tokens: int | None
    generated_tokens: int | None
    cached_tokens: int | None


def read_reply(raw: Any, max_tokens: int) -> Reply:
    """Choices that a server cut off for reasons of its own (a filter, an abort) are left out. Raises Junk."""
    choices = raw.get("choices") if isinstance(raw, Mapping) else None
    if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
        raise Junk("it has no choices")
    indices = [choice.get("index") for choice in choices]
    if all(type(index) is int for index in indices) and len(set(indices)) == len(indices):
        choices = sorted(choices, key=lambda choice: int(choice["index"]))
    read = [choice for item in choices if (choice := _choice(item, max_tokens)) is not None]
    if not read:
        said = (str(choice.get("finish_reason")) for choice in choices)
        reasons = sorted({reason if re.fullmatch("[a-z_]{1,30}", reason) else "another" for reason in said})
        raise Junk(f"no usable choice (finish_reason: {', '.join(reasons) or 'there is no choice'})")
    usage = raw.get("usage") if isinstance(raw.get("usage"), Mapping) else {}
    details = usage.get("prompt_tokens_details")
    cached = count(details, "cached_tokens") if isinstance(details, Mapping) else None
    return Reply(tuple(read), count(usage, "prompt_tokens"), count(usage, "completion_tokens"), cached)


def _choice(item: Mapping[str, Any], max_tokens: int) -> Choice | None:
    finish = item.get("finish_reason")
    if finish not in _WHOLE:
        return None
    message = item.get("message")
    text = message.get("content") if isinstance(message, Mapping) else item.get("text")
    if text is None and isinstance(message, Mapping):
        text = ""  # nothing but thoughts, which are no part of the solution
    if not isinstance(text, str):
        raise Junk("a choice has no text")
    if len(text) > MOST_CHARACTERS * (max_tokens + 1):
        raise Junk(f"{len(text)} characters of text for {max_tokens} tokens")
    ids = item.get("token_ids")
    sound = isinstance(ids, list) and all(type(token) is int and token >= 0 for token in ids)
    return Choice(
        whole_characters(text),
        "length" if finish == "length" else "stop",
        _matched(item),
        tuple(ids) if ids and sound else None,
        _logprobs(item.get("logprobs")),
    )


def _matched(item: Mapping[str, Any]) -> str | None:
    """vLLM's `stop_reason`, SGLang's `matched_stop`: a stop string, or a token or nothing for the model's own end."""
    for name in ("stop_reason", "matched_stop"):
        if name in item:
            return "stop" if isinstance(item[name], str) else "end"
    return None


def _logprobs(said: Any) -> tuple[float, ...] | None:
    """One number for each token, or None."""
    if not isinstance(said, Mapping):
        return None
    values = said.get("token_logprobs")
    if values is None and isinstance(said.get("content"), list):
        values = [token.get("logprob") if isinstance(token, Mapping) else None for token in said["content"]]
    if not isinstance(values, list) or not values or not all(is_number(value) for value in values):
        return None
    return tuple(float(value) for value in values)


def estimate(text: str) -> int:
    """Tokens of a text where nobody counts them: one for three bytes."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 3)


def is_number(value: Any) -> bool:
    """A finite number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def count(usage: Any, name: str) -> int | None:
    """A count from a `usage` block, None where it is absent or no count."""
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if type(value) is int and value >= 0 else None

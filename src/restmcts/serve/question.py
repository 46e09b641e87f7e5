"""The messages of a chat as one question.

A search answers one question, and the policy knows no chat beside that. The last message is the question; what was said
before it is put in front of it, so that nothing a client sends is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from restmcts.serve.refusal import Refusal

EARLIER, NOW = "Earlier in this conversation:", "Now:"
_SPEAKERS = {"user": "User", "assistant": "Assistant"}
_LEADING = ("system", "developer")


def question_of(messages: Sequence[Any]) -> str:
    """The question that a chat asks.

    One user message is the question as it is. System and developer messages go before it, a blank line between; earlier
    turns go before it as a transcript. Raises Refusal for a chat that does not end with a user's text, and for what is
    no text: pictures, sound, calls of tools.
    """
    read = [_read(message, f"messages.{at}") for at, message in enumerate(messages)]
    if not read or read[-1][0] != "user":
        raise _refused("the last message must be the user's: it is the question", "messages")
    question = read[-1][1]
    if not question.strip():
        raise _refused("the last message is empty: it is the question", "messages")
    parts = [text for role, text in read if role in _LEADING and text.strip()]
    turns = [f"{_SPEAKERS[role]}: {text}" for role, text in read[:-1] if role in _SPEAKERS]
    if turns:
        parts += ["\n".join([EARLIER, *turns]), f"{NOW}\n{question}"]
    else:
        parts.append(question)
    return "\n\n".join(parts)


def _read(message: Any, where: str) -> tuple[str, str]:
    """Role and text of a message."""
    if not isinstance(message, Mapping):
        raise _refused(f"{where} is no object with role and content", where)
    role = message.get("role")
    if role not in (*_LEADING, *_SPEAKERS):
        known = ", ".join((*_LEADING, *_SPEAKERS))
        raise _refused(f"{where}.role = {str(role)[:50]!r}: it must be one of {known}", f"{where}.role")
    if message.get("tool_calls") or message.get("function_call") or message.get("audio"):
        raise _refused(f"{where} calls a tool or holds sound; a search answers with text alone", where)
    return str(role), _text(message.get("content"), f"{where}.content")


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts: list[str] = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise _refused(f"{where} must be text, or a list of parts of type text", where)
        texts.append(text)
    joined = "\n".join(texts)
    try:
        joined.encode()
    except UnicodeEncodeError:
        raise _refused(f"{where} holds half a character, which no text does", where) from None
    return joined


def _refused(message: str, param: str) -> Refusal:
    return Refusal(400, message, param=param, code="invalid_messages")

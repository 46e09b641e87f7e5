"""What makes two questions the same question: their words, numbers and signs, not their spacing or case."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TRAILING_ZEROS = re.compile(r"(?<![\d.])(\d+)\.0+(?![\d.])")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d]+|[^\w\s]|_")


def normal_question(question: str) -> str:
    """`question` without what does not change it: case, spacing, `1,000` for `1000`, `5.0` for `5`, end punctuation."""
    text = unicodedata.normalize("NFKC", question).casefold()
    text = _TRAILING_ZEROS.sub(r"\1", _THOUSANDS.sub("", text))
    return " ".join(_TOKEN.findall(text)).rstrip(" .?!:=")


def content_id(question: str) -> str:
    """A short identifier of `question` that does not depend on where in a file it stands (12 hex digits)."""
    return hashlib.blake2b(normal_question(question).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()

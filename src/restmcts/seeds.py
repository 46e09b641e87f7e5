"""Seeds hash identity (run, round, problem, call), never arrival order."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on `parts` alone: the same on every machine, process and run.

    Parts are told apart by their text, so `derive_seed(1, 23)` differs from `derive_seed(12, 3)`.
    """
    return _number(_hashed("\x1f".join(str(part) for part in parts)))


class Seeds:
    """The seeds whose parts begin with `parts`: `Seeds(1, 2)(3)` is `derive_seed(1, 2, 3)`, for many thirds at once."""

    def __init__(self, *parts: object) -> None:
        self._begun = _hashed("".join(f"{part}\x1f" for part in parts))

    def __call__(self, last: int) -> int:
        whole = self._begun.copy()
        whole.update(b"%d" % last)
        return _number(whole)


def _hashed(text: str) -> hashlib.blake2b:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)


def _number(whole: hashlib.blake2b) -> int:
    return int.from_bytes(whole.digest(), "big") >> 1

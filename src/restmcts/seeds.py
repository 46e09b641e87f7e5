"""Seeds hash identity (run, round, problem, call), never arrival order."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on `parts` alone: the same on every machine, process and run.

    Parts are told apart by their text, so `derive_seed(1, 23)` differs from `derive_seed(12, 3)`.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1

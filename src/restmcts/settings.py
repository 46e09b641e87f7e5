"""The base of every settings object: frozen, strict about unknown names, plain data."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Immutable settings. Unknown names are refused; the caller owns all state."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

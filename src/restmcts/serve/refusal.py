"""What a client is told when it gets no solution, in the protocol's own form."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """A request that is not answered: an HTTP status, a line for a person, and for programs a code and the parameter.

    `wait` is after how many seconds the client may try again.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, wait: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = " ".join(message.split())
        self.code = code
        self.param = param
        self.wait = wait

    @property
    def kind(self) -> str:
        """What the protocol calls the type of the error."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What goes beside the body."""
        found = {} if self.wait is None else {"Retry-After": str(self.wait)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

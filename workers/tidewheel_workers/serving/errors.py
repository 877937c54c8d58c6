"""What a client is told when a request fails: OpenAI's error object with a fitting status."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class ApiError(Exception):
    """A request ends with this status and error object."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self._headers = dict(headers or {})

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        if self.retry_after_seconds is None:
            return self._headers
        return self._headers | {"Retry-After": str(max(1, math.ceil(self.retry_after_seconds)))}

    def to_body(self) -> dict[str, Any]:
        """The error object; OpenAI's clients read it."""
        return {
            "error": {
                "message": self.message,
                "type": _type_of(self.status),
                "param": self.param,
                "code": self.code,
            }
        }


def invalid(code: str, message: str, param: str | None = None) -> ApiError:
    """The request itself is at fault."""
    return ApiError(400, code, message, param=param)


def busy(message: str, *, retry_after_seconds: float = 1) -> ApiError:
    """No slot is free now; gateways, and OpenAI's clients, read the milliseconds where there are any."""
    milliseconds = max(1, math.ceil(1000 * retry_after_seconds))
    return ApiError(
        429,
        "no_free_slot",
        message,
        retry_after_seconds=retry_after_seconds,
        headers={"retry-after-ms": str(milliseconds)},
    )


def unavailable(code: str, message: str) -> ApiError:
    """This server cannot serve now; another one, or a later try, may."""
    return ApiError(503, code, message, retry_after_seconds=1)


def _type_of(status: int) -> str:
    known = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    if status in known:
        return known[status]
    return "invalid_request_error" if status < 500 else "server_error"

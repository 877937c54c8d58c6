"""What the Kubernetes API can answer instead of an object, as exceptions a caller can tell apart."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """The API server refused or failed a request.

    Attributes:
        status: the HTTP status, 0 if no answer came.
        reason: the Status object's reason, such as `Invalid`.
        causes: `(field, message)` of each cause the server named.
        retry_after_seconds: how long the server asks to wait, if it does.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        causes: tuple[tuple[str, str], ...] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.causes = causes
        self.retry_after_seconds = retry_after_seconds


class NotFound(ApiError):
    """404: the object, its namespace or its resource is not there."""


class AlreadyExists(ApiError):
    """409 with reason AlreadyExists: another object has that name."""


class Conflict(ApiError):
    """409: the object changed since it was read, or a precondition or field owner stands against it."""


class Invalid(ApiError):
    """422: the object breaks its schema or a rule; sending it again changes nothing."""


class Forbidden(ApiError):
    """403: RBAC, admission or quota stands against it."""


class Gone(ApiError):
    """410: the resourceVersion or continue token is too old; list again."""


class TooManyRequests(ApiError):
    """429: the server asks to come back later."""


class Unavailable(ApiError):
    """No answer, or a 5xx: worth a retry."""


def error_from_status(status: int, body: Any, *, request: str, retry_after: str | None = None) -> ApiError:
    """The exception for an HTTP answer of 400 and above; `request` says what was asked, for the message."""
    details = body if isinstance(body, dict) else {}
    reason = str(details.get("reason", ""))
    message = str(details.get("message") or body or f"HTTP {status}")[:2000]
    causes = tuple(
        (str(cause.get("field", "")), str(cause.get("message", "")))
        for cause in (details.get("details") or {}).get("causes") or []
    )
    kind: type[ApiError]
    match status:
        case 404:
            kind = NotFound
        case 409:
            kind = AlreadyExists if reason == "AlreadyExists" else Conflict
        case 422:
            kind = Invalid
        case 403:
            kind = Forbidden
        case 410:
            kind = Gone
        case 429:
            kind = TooManyRequests
        case _:
            kind = Unavailable if status >= 500 else ApiError
    try:
        seconds = float(retry_after) if retry_after else None
    except ValueError:
        seconds = None
    return kind(
        f"{request}: {message}", status=status, reason=reason, causes=causes, retry_after_seconds=seconds
    )

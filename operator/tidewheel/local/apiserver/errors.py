"""The Status objects with which a Kubernetes API server refuses a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidewheel.local.apiserver.registry import Resource

Manifest = dict[str, Any]


class ApiError(Exception):
    """A request that fails with a Status object.

    Args:
        code: the HTTP status.
        reason: the machine-readable `reason` of the Status.
        message: what is wrong, for the person who sent the request.
        details: the `details` of the Status, left out when None.
        headers: HTTP headers to send along, such as Retry-After.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Manifest | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.headers = dict(headers or {})

    def status(self) -> Manifest:
        """The Status object a client receives."""
        body: Manifest = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details is not None:
            body["details"] = self.details
        return body


def details_of(resource: Resource, name: str) -> Manifest:
    """The `details` that name an object by its resource."""
    details: Manifest = {}
    if name:
        details["name"] = name
    if resource.group:
        details["group"] = resource.group
    details["kind"] = resource.plural
    return details


def not_found(resource: Resource, name: str) -> ApiError:
    """404: no such object."""
    message = f'{resource.qualified} "{name}" not found'
    return ApiError(404, "NotFound", message, details=details_of(resource, name))


def already_exists(resource: Resource, name: str) -> ApiError:
    """409: an object of this name is there already."""
    message = f'{resource.qualified} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, details=details_of(resource, name))


def conflict(resource: Resource, name: str) -> ApiError:
    """409: the object has moved on since the client read it."""
    message = (
        f'Operation cannot be fulfilled on {resource.qualified} "{name}": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    return ApiError(409, "Conflict", message, details=details_of(resource, name))


def precondition_failed(kind: str, name: str, message: str) -> ApiError:
    """409: the object is not the one the client meant to delete or change."""
    text = f'Operation cannot be fulfilled on {kind} "{name}": {message}'
    return ApiError(409, "Conflict", text, details={"name": name, "kind": kind})


def bad_request(message: str) -> ApiError:
    """400: the request cannot be understood."""
    return ApiError(400, "BadRequest", message)


def forbidden(
    resource: Resource, name: str, message: str, *, causes: Sequence[Manifest] | None = None
) -> ApiError:
    """403: the request is understood and refused."""
    details = details_of(resource, name)
    if causes:
        details["causes"] = list(causes)
    return ApiError(
        403, "Forbidden", f'{resource.qualified} "{name}" is forbidden: {message}', details=details
    )


def method_not_allowed(
    message: str = "the server does not allow this method on the requested resource",
) -> ApiError:
    """405: the resource has no such verb."""
    return ApiError(405, "MethodNotAllowed", message, details={})


def unsupported_media_type(accepted: Sequence[str]) -> ApiError:
    """415: the body's content type is none that this endpoint takes."""
    message = "the body of the request was in an unknown format - accepted media types include: " + ", ".join(
        accepted
    )
    return ApiError(415, "UnsupportedMediaType", message)


def expired(message: str) -> ApiError:
    """410: the version asked for is no longer in the history."""
    return ApiError(410, "Expired", message)


def too_large_version(asked: int, current: int) -> ApiError:
    """504: the client has seen a version that this server has not reached."""
    return ApiError(
        504,
        "Timeout",
        f"Too large resource version: {asked}, current: {current}",
        details={
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
        headers={"Retry-After": "1"},
    )


def too_many_requests(message: str, *, causes: Sequence[Manifest] | None = None) -> ApiError:
    """429: try again later."""
    details: Manifest = {"retryAfterSeconds": 10}
    if causes:
        details = {"causes": list(causes)}
    return ApiError(429, "TooManyRequests", message, details=details, headers={"Retry-After": "10"})


def bad_gateway(message: str) -> ApiError:
    """502: what stands behind this server does not answer."""
    return ApiError(502, "BadGateway", message)


def invalid(kind: str, group: str, name: str, causes: Sequence[Manifest]) -> ApiError:
    """422: the object breaks rules; each cause has `field`, `message` and `reason`.

    The message repeats each distinct cause once, as the real server does.
    """
    lines = list(dict.fromkeys(f"{cause['field']}: {cause['message']}" for cause in causes))
    text = lines[0] if len(lines) == 1 else f"[{', '.join(lines)}]"
    qualified = f"{kind}.{group}" if group else kind
    details: Manifest = {}
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    details["kind"] = kind
    details["causes"] = list(causes)
    return ApiError(422, "Invalid", f'{qualified} "{name}" is invalid: {text}', details=details)


def cause(field: str, message: str, reason: str) -> Manifest:
    """One entry of `details.causes`."""
    return {"reason": reason, "message": message, "field": field}

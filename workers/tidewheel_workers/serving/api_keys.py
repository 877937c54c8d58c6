"""Who may use a gateway: keys from a mounted Secret, one a line, read again when it changes."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.watched_file import WatchedFile

if TYPE_CHECKING:
    from pathlib import Path


class ApiKeys:
    """The accepted keys; without a file everyone is accepted, with an unreadable one nobody."""

    def __init__(self, path: Path | None) -> None:
        self.file = WatchedFile(path, _parse) if path is not None else None

    def check(self, authorization: str | None) -> None:
        """Accept a request by its Authorization header.

        Raises:
            ApiError: 401, without a hint at what would have been right.
        """
        if self.file is None:
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise ApiError(
                401, "missing_api_key", "give an API key in the header `Authorization: Bearer <key>`"
            )
        given = key.strip().encode()
        # every key is compared, each in constant time, so that the time tells nothing
        matches = [hmac.compare_digest(given, known) for known in self.file.current or ()]
        if not any(matches):
            raise ApiError(401, "invalid_api_key", "the API key is not accepted here")


def _parse(content: bytes) -> frozenset[bytes]:
    return frozenset(line.strip() for line in content.splitlines() if line.strip())

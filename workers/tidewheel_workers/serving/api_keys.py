"""Who may use a gateway, and how much: keys from a mounted Secret, one a line, read again when it changes.

A line is `KEY [name=NAME] [rpm=N] [tpm=N] [concurrent=N] [max_tokens=N]`: requests and tokens a minute, requests at a time, and the
longest answer. What is left out is not limited. Each gateway keeps its own count of what a key used, in all its processes.
"""

from __future__ import annotations

import hmac
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.key_limits import Allowance, Limits
from tidewheel_workers.serving.key_use import MOST_LIMITED_KEYS, KeyUse
from tidewheel_workers.serving.watched_file import WatchedFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What keys without a name are called in metrics.
UNNAMED = "unnamed"
#: A key's name is a label of metrics, so it has to be a short word.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LIMITS = {
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
    "concurrent": "concurrent",
    "max_tokens": "max_tokens",
}
#: The largest limit that can be given; more is a slip of the pen.
_MOST = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One accepted key."""

    secret: bytes = field(repr=False)
    name: str = UNNAMED
    limits: Limits = field(default_factory=Limits)


class ApiKeys:
    """The accepted keys; without a file everyone is accepted, with an unreadable one nobody."""

    def __init__(self, path: Path | None, use: KeyUse | None = None) -> None:
        self.file = WatchedFile(path, read_keys) if path is not None else None
        self._use = KeyUse() if use is None and path is not None else use

    def check(self, authorization: str | None) -> ApiKey | None:
        """The key of a request by its Authorization header; None where no key is asked for.

        Raises:
            ApiError: 401, without a hint at what would have been right.
        """
        if self.file is None:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise ApiError(
                401, "missing_api_key", "give an API key in the header `Authorization: Bearer <key>`"
            )
        given = key.strip().encode()
        # every key is compared, each in constant time, so that the time tells nothing
        matches = [one for one in self.file.current or () if hmac.compare_digest(given, one.secret)]
        if not matches:
            raise ApiError(401, "invalid_api_key", "the API key is not accepted here")
        return matches[0]

    def admit(self, key: ApiKey, tokens: int, at: float) -> Reservation:
        """Let a request in that will use about that many tokens.

        Raises:
            RateLimited: 429, a limit of the key is reached.
        """
        with self._allowance(key) as allowance:
            allowance.admit(tokens, at)
        return Reservation(self, key, tokens)

    def end(self, key: ApiKey, reserved: int, used: int, at: float) -> None:
        """A request that reserved so many tokens has ended and used so many."""
        with self._allowance(key) as allowance:
            allowance.end(reserved, used, at)

    def headers(self, key: ApiKey, at: float) -> dict[str, str]:
        """What the key has left, for an answer."""
        with self._allowance(key) as allowance:
            return allowance.headers(at)

    def forget_removed(self) -> None:
        """Drop the counts of keys that the file does not hold any more."""
        if self.file is not None and self._use is not None:
            self._use.keep([key.secret for key in self.file.current or () if not key.limits.are_none])

    @contextmanager
    def _allowance(self, key: ApiKey) -> Iterator[Allowance]:
        if self._use is None:
            raise RuntimeError("without a file of keys there is no key")
        with self._use.of(key.secret) as use:
            # the file may have changed since the last request: what was used stays used
            yield Allowance(key.limits, use)


class Reservation:
    """What one open request holds of its key's allowance; end it once, or as often as is convenient."""

    def __init__(self, keys: ApiKeys, key: ApiKey, tokens: int) -> None:
        self._keys: ApiKeys | None = keys
        self._key = key
        self._tokens = tokens

    def end(self, used_tokens: int, at: float) -> None:
        """The request has ended and used that many tokens."""
        if self._keys is not None:
            keys, self._keys = self._keys, None
            keys.end(self._key, self._tokens, used_tokens, at)


def read_keys(content: bytes) -> tuple[ApiKey, ...]:
    """The keys of a file.

    Raises:
        ValueError: a line that cannot be understood, by its number; the text never holds what may be a key.
    """
    keys: dict[bytes, ApiKey] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if words[0] in keys:
            raise ValueError(f"line {number} repeats the key of another line")
        keys[words[0]] = _read_key(words[0], words[1:], number)
    limited = sum(not key.limits.are_none for key in keys.values())
    if limited > MOST_LIMITED_KEYS:
        raise ValueError(f"{limited} keys have limits; a gateway keeps count of {MOST_LIMITED_KEYS}")
    return tuple(keys.values())


def _read_key(secret: bytes, words: list[bytes], number: int) -> ApiKey:
    given: dict[str, str] = {}
    for place, word in enumerate(words, start=2):
        setting, separator, value = word.decode(errors="replace").partition("=")
        if not separator or setting not in {"name", *_LIMITS}:
            raise ValueError(
                f"line {number}: word {place} is no setting; known are name=, {', '.join(f'{n}=' for n in _LIMITS)}"
            )
        if setting in given:
            raise ValueError(f"line {number} gives {setting} twice")
        given[setting] = value
    name = given.pop("name", UNNAMED)
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"line {number}: a name is 1 to 63 letters, digits, dots, dashes and underscores, and begins with a letter or digit"
        )
    for setting, value in given.items():
        if not (value.isascii() and value.isdigit() and 1 <= int(value) <= _MOST):
            raise ValueError(f"line {number}: {setting} must be a whole number from 1 to {_MOST}")
    limits = Limits(**{_LIMITS[setting]: int(value) for setting, value in given.items()})
    return ApiKey(secret=secret, name=name, limits=limits)

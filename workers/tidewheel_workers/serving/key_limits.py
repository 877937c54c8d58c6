"""What one API key may still use: token buckets and a count of open requests, without a clock or I/O of its own.

A bucket holds as much as one minute allows and fills evenly, so that a key may spend a minute's worth at once and then goes on
at the rate it was given: within any t seconds at most limit × (1 + t / 60) are let through. Tokens are reserved by an estimate when a
request comes and set right when it has ended, so a bucket can lie below zero for a while; then the next request waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tidewheel_workers.serving.errors import ApiError

MINUTE = 60.0
#: What is missing by so little is missing by rounding.
ROUNDING = 1e-6
#: When an open request will end is not known; a client may as well ask again soon.
CONCURRENT_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a key may use of one gateway; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    max_tokens: int | None = None  # of one answer

    @property
    def are_none(self) -> bool:
        """Whether everything is allowed."""
        return self == Limits()


class Bucket:
    """A token bucket of `per_minute`, full at first."""

    def __init__(self, per_minute: int, at: float) -> None:
        self.capacity = per_minute
        self._level = float(per_minute)
        self._at = at

    @property
    def per_second(self) -> float:
        """How fast it fills."""
        return self.capacity / MINUTE

    def level(self, at: float) -> float:
        """What is in it at that time; a clock that goes back changes nothing."""
        return min(float(self.capacity), self._level + max(0.0, at - self._at) * self.per_second)

    def seconds_until(self, amount: float, at: float) -> float:
        """How long until that much is in it; infinite for what it can never hold."""
        if amount > self.capacity:
            return math.inf
        missing = amount - self.level(at)
        return missing / self.per_second if missing > ROUNDING else 0.0

    def take(self, amount: float, at: float) -> None:
        """Take that much, even where it leaves less than nothing; a negative amount is given back."""
        self._level = min(float(self.capacity), self.level(at) - amount)
        self._at = max(self._at, at)

    def resize(self, per_minute: int, at: float) -> None:
        """Another limit: what was used stays used."""
        used = self.capacity - self.level(at)
        self.capacity = per_minute
        self._level, self._at = per_minute - used, max(self._at, at)


class Allowance:
    """One key's use of its limits."""

    def __init__(self, limits: Limits, at: float) -> None:
        self.limits = limits
        self.open = 0
        self._requests = _bucket(None, limits.requests_per_minute, at)
        self._tokens = _bucket(None, limits.tokens_per_minute, at)

    def change(self, limits: Limits, at: float) -> None:
        """Other limits from now on."""
        self.limits = limits
        self._requests = _bucket(self._requests, limits.requests_per_minute, at)
        self._tokens = _bucket(self._tokens, limits.tokens_per_minute, at)

    def admit(self, tokens: int, at: float) -> Reservation:
        """Let a request in that will use about that many tokens; what is refused costs nothing.

        Raises:
            ApiError: 429 with the limit that is reached, the time to try again, and the headers of the limits.
        """
        refused = self._refusal(tokens, at)
        if refused is not None:
            raise refused
        self.open += 1
        if self._requests is not None:
            self._requests.take(1, at)
        if self._tokens is not None:
            self._tokens.take(tokens, at)
        return Reservation(self, tokens)

    def headers(self, at: float) -> dict[str, str]:
        """How much is left, as OpenAI's servers say it."""
        told: dict[str, str] = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                told[f"x-ratelimit-limit-{name}"] = str(bucket.capacity)
                told[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level(at))))
                told[f"x-ratelimit-reset-{name}"] = duration(bucket.seconds_until(bucket.capacity, at))
        return told

    def ended(self, reserved: int, used: int, at: float) -> None:
        """A request that reserved so many tokens has ended and used so many."""
        self.open -= 1
        if self._tokens is not None:
            self._tokens.take(used - reserved, at)

    def _refusal(self, tokens: int, at: float) -> ApiError | None:
        limits = self.limits
        if limits.concurrent is not None and self.open >= limits.concurrent:
            return self._limited(
                "concurrent",
                f"this key may have {limits.concurrent} open requests at a time; wait for one to end",
                CONCURRENT_RETRY_SECONDS,
                at,
            )
        asked = (("requests", self._requests, 1), ("tokens", self._tokens, tokens))
        waits = [(b.seconds_until(amount, at), name, b, amount) for name, b, amount in asked if b is not None]
        wait, name, bucket, amount = max(waits, key=lambda one: one[0], default=(0.0, "", None, 0))
        if bucket is None or wait == 0:
            return None
        allowed = f"this key may use {bucket.capacity} {name} a minute"
        if wait == math.inf:
            message = (
                f"{allowed}, and prompt and answer of this request alone may take {amount}; "
                "shorten the prompt or lower max_tokens"
            )
            return self._limited(name, message, None, at)
        left = max(0, math.floor(bucket.level(at)))
        message = f"{allowed}; {left} are left and {amount} are asked for. Try again in {duration(wait)}"
        return self._limited(name, message, wait, at)

    def _limited(self, limit: str, message: str, wait: float | None, at: float) -> ApiError:
        headers = self.headers(at)
        if wait is None:
            # OpenAI's clients repeat a 429 by themselves unless they are told that it is of no use
            headers["x-should-retry"] = "false"
        return RateLimited(limit, message, retry_after_seconds=wait, headers=headers)


class RateLimited(ApiError):
    """A key's limit is reached; `limit` says which: requests, tokens or concurrent."""

    def __init__(
        self, limit: str, message: str, *, retry_after_seconds: float | None, headers: dict[str, str]
    ) -> None:
        super().__init__(
            429, "rate_limit_exceeded", message, retry_after_seconds=retry_after_seconds, headers=headers
        )
        self.limit = limit


class Reservation:
    """What one open request holds of its key's allowance; end it once, or as often as is convenient."""

    def __init__(self, allowance: Allowance, tokens: int) -> None:
        self._allowance: Allowance | None = allowance
        self._tokens = tokens

    def end(self, used_tokens: int, at: float) -> None:
        """The request has ended and used that many tokens."""
        if self._allowance is None:
            return
        allowance, self._allowance = self._allowance, None
        allowance.ended(self._tokens, used_tokens, at)


def duration(seconds: float) -> str:
    """As OpenAI's headers write it: 20ms, 7.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < MINUTE:
        return f"{math.ceil(seconds * 10) / 10:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"


def _bucket(old: Bucket | None, per_minute: int | None, at: float) -> Bucket | None:
    if per_minute is None:
        return None
    if old is None:
        return Bucket(per_minute, at)
    old.resize(per_minute, at)
    return old

"""What one API key may still use: token buckets and a count of open requests, without a clock or I/O of its own.

A bucket holds as much as one minute allows and fills evenly, so that a key may spend a minute's worth at once and then goes on
at the rate it was given: within any t seconds at most limit × (1 + t / 60) are let through. Tokens are reserved by an estimate when a
request comes and set right when it has ended, so a bucket can lie below zero for a while; then the next request waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

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


@dataclass(slots=True)
class Used:
    """How much is missing from a bucket, at some time; other limits leave it as it is."""

    amount: float = 0.0
    at: float = 0.0


@dataclass(slots=True, kw_only=True)
class Use:
    """What a key has used and not got back."""

    requests: Used = field(default_factory=Used)
    tokens: Used = field(default_factory=Used)
    open_here: int = 0  # requests that this process has let in
    open_elsewhere: int = 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """A key's limits, and its use of them."""

    limits: Limits
    use: Use

    def admit(self, tokens: int, at: float) -> None:
        """Let a request in that will use about that many tokens; what is refused costs nothing.

        Raises:
            RateLimited: with the limit that is reached, the time to try again, and the headers of the limits.
        """
        refused = self._refusal(tokens, at)
        if refused is not None:
            raise refused
        self.use.open_here += 1
        for bucket, amount in ((self._requests, 1), (self._tokens, tokens)):
            if bucket is not None:
                bucket.take(amount, at)

    def end(self, reserved: int, used: int, at: float) -> None:
        """A request that reserved so many tokens has ended and used so many."""
        self.use.open_here = max(0, self.use.open_here - 1)
        if (tokens := self._tokens) is not None:
            tokens.take(used - reserved, at)

    def headers(self, at: float) -> dict[str, str]:
        """How much is left, as OpenAI's servers say it."""
        told: dict[str, str] = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                told[f"x-ratelimit-limit-{name}"] = str(bucket.capacity)
                told[f"x-ratelimit-remaining-{name}"] = str(bucket.left(at))
                told[f"x-ratelimit-reset-{name}"] = duration(bucket.seconds_until(bucket.capacity, at))
        return told

    @property
    def _requests(self) -> _Bucket | None:
        limit = self.limits.requests_per_minute
        return None if limit is None else _Bucket(limit, self.use.requests)

    @property
    def _tokens(self) -> _Bucket | None:
        limit = self.limits.tokens_per_minute
        return None if limit is None else _Bucket(limit, self.use.tokens)

    def _refusal(self, tokens: int, at: float) -> RateLimited | None:
        most = self.limits.concurrent
        if most is not None and self.use.open_here + self.use.open_elsewhere >= most:
            return self._limited(
                "concurrent",
                f"this key may have {most} open requests at a time; wait for one to end",
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
        message = (
            f"{allowed}; {bucket.left(at)} are left and {amount} are asked for. Try again in {duration(wait)}"
        )
        return self._limited(name, message, wait, at)

    def _limited(self, limit: str, message: str, wait: float | None, at: float) -> RateLimited:
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


@dataclass(frozen=True, slots=True)
class _Bucket:
    capacity: int
    used: Used

    def level(self, at: float) -> float:
        """What is in it at that time; a clock that goes back changes nothing."""
        filled = max(0.0, at - self.used.at) * self.capacity / MINUTE
        return self.capacity - max(0.0, self.used.amount - filled)

    def left(self, at: float) -> int:
        return max(0, math.floor(self.level(at) + ROUNDING))

    def seconds_until(self, amount: float, at: float) -> float:
        """How long until that much is in it; infinite for what it can never hold."""
        if amount > self.capacity:
            return math.inf
        missing = amount - self.level(at)
        return missing * MINUTE / self.capacity if missing > ROUNDING else 0.0

    def take(self, amount: float, at: float) -> None:
        """Take that much, even where it leaves less than nothing; a negative amount is given back."""
        self.used.amount = max(0.0, self.capacity - self.level(at) + amount)
        self.used.at = max(self.used.at, at)


def duration(seconds: float) -> str:
    """As OpenAI's headers write it: 20ms, 7.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < MINUTE:
        return f"{math.ceil(seconds * 10) / 10:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"

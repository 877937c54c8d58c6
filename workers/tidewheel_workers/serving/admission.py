"""Lets requests into a gateway: by their API key, within its limits, and counted under its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidewheel_workers.serving.api_keys import UNNAMED
from tidewheel_workers.serving.key_limits import RateLimited
from tidewheel_workers.serving.openai_api import bounded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidewheel_workers.serving.api_keys import ApiKey, ApiKeys, Reservation
    from tidewheel_workers.serving.gateway_metrics import GatewayMetrics
    from tidewheel_workers.serving.openai_api import ChatRequest, CompletionRequest

#: More names than these are counted together, so that a file of keys cannot make metrics without end.
MOST_NAMES = 200
OTHERS = "other"


class Admission:
    """Who comes in, and what they used."""

    def __init__(self, keys: ApiKeys, metrics: GatewayMetrics) -> None:
        self._keys = keys
        self._metrics = metrics
        self._names: set[str] = set()

    def check(self, authorization: str | None) -> ApiKey | None:
        """As in `ApiKeys`."""
        return self._keys.check(authorization)

    def admit(
        self, key: ApiKey | None, body: dict[str, Any], request: ChatRequest | CompletionRequest, at: float
    ) -> Visit:
        """Let a request in.

        Raises:
            ApiError: 429, a limit of the key is reached; 400, a longer answer than the key may have.
        """
        if key is None:
            return Visit(self, None, None, body)
        if key.limits.max_tokens is not None:
            body = bounded(body, request, key.limits.max_tokens)
        if key.limits.are_none:
            return Visit(self, key, None, body)
        try:
            reservation = self._keys.admit(key, request.tokens_estimate(key.limits.max_tokens), at)
        except RateLimited as refused:
            self._metrics.key_refusals.labels(self._label(key), refused.limit).inc()
            self._metrics.key_requests.labels(self._label(key), str(refused.status)).inc()
            raise
        return Visit(self, key, reservation, body)

    def headers(self, key: ApiKey | None, at: float) -> Mapping[str, str]:
        """What the key has left; nothing where it is not limited."""
        return {} if key is None or key.limits.are_none else self._keys.headers(key, at)

    def count(self, key: ApiKey, status: str, *, prompt_tokens: int, output_tokens: int) -> None:
        """A request of this key has ended."""
        name = self._label(key)
        self._metrics.key_requests.labels(name, status).inc()
        self._metrics.key_tokens.labels(name, "prompt").inc(prompt_tokens)
        self._metrics.key_tokens.labels(name, "output").inc(output_tokens)

    def _label(self, key: ApiKey) -> str:
        if key.name in self._names or key.name == UNNAMED:
            return key.name
        if len(self._names) >= MOST_NAMES:
            return OTHERS
        self._names.add(key.name)
        return key.name


class Visit:
    """One admitted request; it has to be ended."""

    def __init__(
        self, admission: Admission, key: ApiKey | None, reservation: Reservation | None, body: dict[str, Any]
    ) -> None:
        self.body = body  # with the key's longest answer where the request gave none
        self._admission = admission
        self._key = key
        self._reservation = reservation

    def headers(self, at: float) -> Mapping[str, str]:
        """What the key has left, for the answer."""
        return self._admission.headers(self._key, at)

    def end(self, status: str, at: float, *, prompt_tokens: int, output_tokens: int) -> None:
        """The request has ended with this status and used so many tokens."""
        if self._reservation is not None:
            self._reservation.end(prompt_tokens + output_tokens, at)
        if self._key is not None:
            self._admission.count(self._key, status, prompt_tokens=prompt_tokens, output_tokens=output_tokens)

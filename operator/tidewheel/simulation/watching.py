"""What a simulated service measures of itself, window by window: the same figures that the gateway's metrics give the operator."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

from tidewheel.planning.scaling.observed import RoleCounts, ScenarioLoad
from tidewheel.simulation.outcomes import Window

if TYPE_CHECKING:
    from tidewheel.planning.scaling.profile import DeviceProfile
    from tidewheel.simulation.decode import Decode
    from tidewheel.simulation.flights import Flight
    from tidewheel.simulation.prefill import Prefill
    from tidewheel.simulation.traces import Request


@dataclass(slots=True)
class _Since:
    """What happened since the last window closed."""

    arrived: list[Request] = field(default_factory=list)
    computed: list[tuple[float, float, float]] = field(
        default_factory=list
    )  # seconds, uncached and cached work
    answered: list[Flight] = field(default_factory=list)
    given_up: int = 0


class Watch:
    """Collects, and tells once for each window.

    Args:
        ttft_seconds: the objective.
        tpot_seconds: the objective.
        profile: of the devices, for what a cached prefix saved.
    """

    def __init__(self, ttft_seconds: float, tpot_seconds: float, profile: DeviceProfile) -> None:
        self._ttft, self._tpot = ttft_seconds, tpot_seconds
        self._profile = profile
        self._since = _Since()
        self._busy: dict[str, float] = {}

    def arrived(self, request: Request) -> None:
        """A request came."""
        self._since.arrived.append(request)

    def computed(self, flight: Flight) -> None:
        """A prompt's KV is there."""
        whole = self._profile.prefill_seconds(flight.context_tokens)
        done = self._profile.prefill_seconds(
            flight.context_tokens - flight.cached_tokens, flight.cached_tokens
        )
        self._since.computed.append((done, whole, flight.prefilled_at - flight.asked_at))

    def ended(self, flight: Flight) -> None:
        """A request is over."""
        if flight.ending == "answered":
            self._since.answered.append(flight)
        else:
            self._since.given_up += 1

    def close(
        self,
        *,
        ends: float,
        seconds: float,
        waiting: int,
        prefill: RoleCounts,
        decode: RoleCounts,
        prefills: Sequence[Prefill],
        decodes: Sequence[Decode],
    ) -> Window:
        """The window that ends now."""
        since, self._since = self._since, _Since()
        answered = since.answered
        return Window(
            ends=ends,
            load=self._load(since, ends, seconds, waiting),
            prefill=prefill,
            decode=decode,
            prefill_use=self._use(prefills, seconds),
            decode_use=self._use(decodes, seconds),
            queued_tokens=tuple(one.queued_tokens for one in prefills),
            kv_uses=tuple(one.reserved_tokens / one.kv_tokens for one in decodes),
            ttfts=tuple(flight.ttft for flight in answered),
            tpots=tuple(flight.tpot for flight in answered if flight.request.answer_tokens > 1),
        )

    @staticmethod
    def decided(window: Window, wanted: tuple[int, int], why: str) -> Window:
        """The window with what a planner made of it."""
        return replace(window, wanted=wanted, why=why)

    def _use(self, instances: Sequence[Prefill] | Sequence[Decode], seconds: float) -> float:
        """The share of the window in which instances computed; work counts when it is begun, so it can be above one."""
        used = 0.0
        for one in instances:
            used += one.busy_seconds - self._busy.get(one.name, 0.0)
            self._busy[one.name] = one.busy_seconds
        return used / (seconds * len(instances)) if instances else 0.0

    def _load(self, since: _Since, ends: float, seconds: float, waiting: int) -> ScenarioLoad:
        prompts = [float(request.prompt_tokens) for request in since.arrived]
        answers = [float(flight.request.answer_tokens) for flight in since.answered]
        done, whole = (sum(row[at] for row in since.computed) for at in (0, 1))
        ttft = [flight.ttft for flight in since.answered]
        in_time = sum(value <= self._ttft for value in ttft)
        fast = sum(flight.tpot <= self._tpot for flight in since.answered)
        asked = len(since.answered) + since.given_up
        return ScenarioLoad(
            seconds=seconds,
            arrivals=len(prompts),
            prompt_tokens=_mean(prompts),
            answer_tokens=_mean(answers),
            prompt_tokens_squared=_mean([tokens * tokens for tokens in prompts]),
            answer_tokens_squared=_mean([tokens * tokens for tokens in answers]),
            prefix_factor=done / whole if whole else 1.0,
            finished=len(since.answered),
            waiting=waiting,
            rejected=since.given_up,
            prefill_seconds=_mean([row[0] for row in since.computed]),
            decode_seconds=_mean([flight.ended_at - flight.first_token_at for flight in since.answered]),
            transfer_seconds=_mean(
                [flight.transferred_at - flight.prefilled_at for flight in since.answered]
            ),
            ttft_seconds=_mean(ttft),
            e2e_seconds=_mean([flight.ended_at - flight.request.at for flight in since.answered]),
            ttft_attainment=in_time / asked if asked else 1.0,
            tpot_attainment=fast / len(since.answered) if since.answered else 1.0,
            arrival_dispersion=_dispersion(
                [request.at for request in since.arrived], ends - seconds, seconds
            ),
        )


def _dispersion(times: Sequence[float], begins: float, seconds: float) -> float:
    """Variance over mean of the arrivals per second; 1 where too little came to tell."""
    bins = math.floor(seconds)
    if bins < 2 or len(times) < bins:
        return 1.0
    counted = Counter(min(bins - 1, int(at - begins)) for at in times)
    counts = [counted.get(second, 0) for second in range(bins)]
    mean = fmean(counts)
    return sum((count - mean) ** 2 for count in counts) / (bins - 1) / mean


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0

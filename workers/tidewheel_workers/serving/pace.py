"""How fast the servers behind a gateway are: what a first token takes, and how fast a line of waiting requests moves."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

from tidewheel_workers.serving.ledger import GAIN

#: From asking a server to its answer, and from asking a prefill to the decode's first bytes. A decode that does both has
#: other requests beside, so that its times are kept apart.
Stage = Literal["prefill", "decode", "first token", "both"]

#: Something is known after so many requests, and a line's speed follows the last ones.
LEAST_SEEN, MOST_SEEN = 8, 64
#: Deviations beyond the mean that a first token is granted: RFC 6298's four cover the slow ones, too.
DEVIATIONS = 4
#: How many times as long as nearly all others, and how long at least, a silent server is waited for.
PATIENCE, LEAST_PATIENCE_SECONDS = 10, 5.0
#: Loads up to this are told apart one by one, beyond it by their binary logarithm.
FINE_BESIDE = 8
#: What was not seen for so long may have changed.
STALE_SECONDS = 30.0


@dataclass(slots=True)
class _Moving:
    """A moving mean and the mean deviation from it, as RFC 6298 keeps them of round-trip times."""

    mean: float
    deviation: float
    at: float  # of the last value
    count: int = 1

    def add(self, value: float, at: float) -> None:
        self.count += 1
        self.deviation += 2 * GAIN * (abs(value - self.mean) - self.deviation)
        self.mean += GAIN * (value - self.mean)
        self.at = at

    @property
    def nearly_all(self) -> float:
        return self.mean + DEVIATIONS * self.deviation


class Pace:
    """Seconds that prefills and decodes take for a first token.

    They depend on the prompt's length and on how many requests the server had beside: an engine that computes one
    prompt after the other needs twice as long for the second. Both are learnt; what was not seen lately is taken to be as
    what is nearest below it, so that it is tried again.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[Stage, int], dict[int, _Moving]] = {}  # by length, and by load
        self._usual: dict[
            tuple[Stage, int, int], tuple[float, float]
        ] = {}  # what was said, and until when it holds

    def took(self, stage: Stage, characters: int, seconds: float, at: float, *, beside: int = 0) -> None:
        """A stage is over.

        Args:
            stage: which one.
            characters: the prompt's length.
            seconds: since it began.
            at: now.
            beside: how many other requests of ours the server that computed the prompt had then.
        """
        self._usual.clear()
        loads = self._seen.setdefault((stage, characters.bit_length()), {})
        if (moving := loads.get(_load(beside))) is not None:
            moving.add(seconds, at)
        else:
            loads[_load(beside)] = _Moving(seconds, seconds / 2, at)

    def took_longer(
        self, stage: Stage, characters: int, seconds: float, at: float, *, beside: int = 0
    ) -> None:
        """Nothing came in that time, and nobody waited longer.

        Counted as twice as long: if such requests went uncounted, one that is asked for too late would teach nothing, and
        the next one would be as late.
        """
        if self.nearly_all(stage, characters, at, beside=beside) < 2 * seconds:
            self.took(stage, characters, 2 * seconds, at, beside=beside)

    def nearly_all(self, stage: Stage, characters: int, at: float, *, beside: int = 0) -> float:
        """Within what time nearly every such request is through it; 0 while nothing is known of such prompts."""
        length, load = characters.bit_length(), _load(beside)
        usual, until = self._usual.get((stage, length, load), (0.0, -math.inf))
        if at < until:
            return usual
        loads = {
            load: moving
            for load, moving in self._seen.get((stage, length), {}).items()
            if at < moving.at + STALE_SECONDS
        }
        usual, until = 0.0, math.inf
        if loads:
            nearest = loads[max((one for one in loads if one <= load), default=min(loads))]
            usual, until = nearest.nearly_all, nearest.at + STALE_SECONDS
        self._usual[stage, length, load] = usual, until
        return usual

    def first_token_seconds(
        self, characters: int, at: float, *, beside: int = 0, does: Literal["prefill", "decode"] = "prefill"
    ) -> float:
        """What nearly every prompt of that length needs from asking a prefill, or a decode that does both; 0 while nothing is known.

        Of answers that are no streams only the prefill is seen.
        """
        if does == "decode":
            return self.nearly_all("both", characters, at, beside=beside)
        seen = self.nearly_all("first token", characters, at, beside=beside)
        return seen or self.nearly_all("prefill", characters, at, beside=beside)

    def transfer_seconds(self, characters: int) -> float:
        """The mean time until a decode has fetched such a prompt's KV: no later than its first bytes come."""
        loads = self._seen.get(("decode", characters.bit_length()), {})
        return max((moving.mean for moving in loads.values()), default=0.0)

    def patience_seconds(self, stage: Stage, characters: int) -> float:
        """After what silence a server that was asked counts as lost: many times what others ever took."""
        loads = self._seen.get((stage, characters.bit_length()), {}).values()
        if sum(moving.count for moving in loads) < LEAST_SEEN:
            return math.inf
        usual = max(moving.nearly_all for moving in loads)
        return max(LEAST_PATIENCE_SECONDS, PATIENCE * usual)


class LineSpeed:
    """How many requests a second leave a line because a server took them, as long as anybody waits."""

    def __init__(self) -> None:
        self._left: deque[float] = deque(maxlen=MOST_SEEN)

    def left(self, at: float) -> None:
        """One was taken."""
        self._left.append(at)

    def seconds_for(self, ahead: int, at: float) -> float | None:
        """How long the next one waits behind so many; None while too little was seen."""
        if len(self._left) < LEAST_SEEN:
            return None
        return (ahead + 1) * (at - self._left[0]) / (len(self._left) - 1)


def _load(beside: int) -> int:
    return beside if beside <= FINE_BESIDE else FINE_BESIDE + (beside // FINE_BESIDE).bit_length()

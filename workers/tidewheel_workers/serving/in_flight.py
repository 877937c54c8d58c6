"""How many requests of a scenario a gateway works on at a time: counted here, and no more let in than its share."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tidewheel_workers.serving.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidewheel.api.scenarios import RouteScenario

#: When a request of the scenario will end is not known; a client may as well ask again soon.
RETRY_SECONDS = 1.0


class InFlight:
    """The open requests of one gateway's process, by scenario."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._most: dict[str, int] = {}

    def follow(self, scenarios: Iterable[RouteScenario], *, sharers: int) -> None:
        """From now on these limits hold, of which each of so many processes has an equal share, at least one."""
        self._most = {
            one.name: max(1, one.max_in_flight // sharers)
            for one in scenarios
            if one.max_in_flight is not None
        }

    def enter(self, scenario: str) -> None:
        """Let a request in; it has to `leave`.

        Raises:
            ApiError: 429, the scenario has as many as it may.
        """
        most = self._most.get(scenario)
        if most is not None and self._open[scenario] >= most:
            raise ApiError(
                429,
                "scenario_limit",
                f"scenario {scenario} may have {most} requests at a time here; wait for one to end",
                retry_after_seconds=RETRY_SECONDS,
            )
        self._open[scenario] += 1

    def leave(self, scenario: str) -> None:
        """A request that was let in has ended."""
        self._open[scenario] -= 1

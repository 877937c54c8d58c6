"""When a calendar is made anew from what has been learnt; apart from how calendars are made."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tidewheel.planning.allocation.estimates import believed
from tidewheel.planning.allocation.ring import best_calendar
from tidewheel.planning.allocation.rules import Contender, Rules
from tidewheel.planning.allocation.state import AllocationState, PlannedCalendar

#: They and the first rings take some 50 ms of 20 scenarios.
_REFINEMENTS = 400


def calendar_in_force(
    state: AllocationState, contenders: Sequence[Contender], rules: Rules, *, at: int
) -> PlannedCalendar:
    """The calendar to follow in round `at`: the present one, or a new one when what is known has grown enough.

    UCB on the offline policy: the believed curves are planned as if they were true. A new epoch begins when the number of
    rewards has doubled, or has grown at all in as many rounds as the longest idle time or the square root of the rounds so
    far. A few
    refinements are enough here: what more of them gain is less than what is not yet known. Pins take their slots before,
    and neither they nor the frozen are in it; when that changes, it is made anew at once.
    """
    slots = rules.slots - sum(one.pinned for one in contenders)
    free = [i for i, one in enumerate(contenders) if not one.pinned and not one.frozen]
    uids = tuple(contenders[i].uid for i in free)
    now = state.calendar
    patience = max(rules.learning.starts[-1], math.isqrt(state.rounds))
    if (
        now is not None
        and (now.uids, now.slots) == (uids, slots)
        and (
            state.observations == now.observations
            or (state.observations < 2 * now.observations and at < now.planned + patience)
        )
    ):
        return now
    estimates = [state.scenarios[i].estimate for i in free]
    curves = believed(estimates, rules.learning, at=state.rounds + 1)
    calendar = best_calendar(curves, slots, refinements=_REFINEMENTS)
    return PlannedCalendar(
        planned=at, observations=state.observations, slots=slots, uids=uids, calendar=calendar
    )

"""Whether a scenario's prefill and decode have instances of their own: when disaggregation pays, and when it does not.

P/D-Serve (arXiv 2408.08147) takes disaggregation as given. It pays where prompts would slow down the batches beside them, and not
where the load is small, or one role would mostly be idle. So both ways are sized for the same expected load and promises, and
their accelerators compared. A change costs start-ups, so it is made only when the other way has been cheaper by a twentieth in
each of several windows in a row, which together last a holding time; a change back likewise. Between a cost ratio of 0.95
and 1/0.95 nothing changes whatever comes, and otherwise not more often than once in so many windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Disaggregation = Literal["Always", "Never", "Auto"]

#: The other way must need this much less than the present one, or it is said not to pay.
PAYS = 0.95
#: Windows in a row in which it must, at least.
LEAST_WINDOWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a scenario is to run, and for how many windows in a row the other way would have paid."""

    is_combined: bool | None = None  # None: nothing was decided yet
    windows: int = 0


def choose(
    choice: Choice,
    disaggregation: Disaggregation,
    *,
    have: tuple[int, int],
    apart: float,
    together: float | None,
    needed_windows: int,
) -> Choice:
    """The choice after one more window.

    Args:
        choice: the one before.
        disaggregation: what is allowed; Auto leaves it to the costs.
        have: prefills and decodes that there are, for a first choice.
        apart: accelerators with instances of their own.
        together: accelerators of instances that do both; None where no number of them is enough.
        needed_windows: in how many in a row the other way must pay.
    """
    if disaggregation != "Auto":
        return Choice(is_combined=disaggregation == "Never")
    is_combined = choice.is_combined
    if is_combined is None:
        is_combined = runs_combined(have)
    other_pays = (
        together is None or apart <= PAYS * together
        if is_combined
        else together is not None and together <= PAYS * apart
    )
    windows = choice.windows + 1 if other_pays else 0
    if windows >= needed_windows:
        return Choice(is_combined=not is_combined)
    return Choice(is_combined=is_combined, windows=windows)


def windows_needed(hold_seconds: float, window_seconds: float) -> int:
    """In how many windows in a row the other way must pay: a holding time's, and some at least."""
    return max(LEAST_WINDOWS, math.ceil(hold_seconds / window_seconds))


def runs_combined(have: tuple[int, int]) -> bool:
    """Whether there are decodes and no prefills."""
    return have[0] == 0 and have[1] > 0


def as_chosen(have: tuple[int, int], *, is_combined: bool) -> tuple[int, int]:
    """The instances there are, once they run as chosen, where nothing is known by which to size them.

    All of them do both; or half of those that did are joined by as many prefills as that, and none is taken away.
    """
    if is_combined == runs_combined(have) or not any(have):
        return have
    if is_combined:
        return 0, sum(have)
    return max(1, have[1] // 2), have[1]

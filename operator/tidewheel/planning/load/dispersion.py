"""How clumped arrivals are, from gateways' counts by the second of the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tidewheel.api.arrivals import SECONDS

#: Seconds at either end of a window that are left out: the pages of its looks are not read all at one moment, and
#: clocks of gateways differ a little.
_MARGIN = 1
#: Fewer classes tell nothing.
_LEAST = 4


def index_of_dispersion(counts: Mapping[int, float], *, begins: float, ends: float) -> float:
    """Variance over mean of the arrivals per second: 1 for Poisson, c_a² or so for a renewal stream of many a second.

    Gateways count arrivals by class of the clock, j = floor(t) mod 32. With S_j what all of them counted in class j in
    the window, e_j how many whole seconds of the class lie in it, and λ = Σ S_j / Σ e_j, this is Fisher's index of
    dispersion by Pearson's statistic over the J classes (Cochran, Biometrics 10, 1954):

        I = 1 / (J - 1) · Σ_j (S_j - λ e_j)² / (λ e_j).

    S_j is a sum of e_j counts whose mean is λ and whose variance is I λ each, so E(S_j - λ e_j)² = I λ e_j, less what
    estimating λ takes, which J - 1 makes good: I is met on average, for any number of arrivals. In a window of up to
    32 s each class is one second, and I is the variance of counts over their mean. In a longer one a class is made of
    seconds that lie 32 s apart, so that a rise or fall over the window is shared by all classes and is not taken for
    clumps.

    **Several gateways.** S_j is linear in the arrivals. Its sum over gateways is what one gateway would have counted that
    takes all requests, whether a balancer deals them out by chance, in turn, or by client. Their own indices would not
    do: by chance, each of n sees 1 + (I - 1)/n, and by client, I.

    **Error.** One window of 30 s has J = 27 or so and a standard deviation of I √(2 / (J - 1)), 28 %. The planner
    takes the mean over what arrived in thirty windows, 5 %.

    Args:
        counts: arrivals by class.
        begins: Unix time of the window's first look.
        ends: of its last.

    Returns:
        The index; 1 where no request came, and in windows of less than 7 s or so, in which too few whole seconds lie.
    """
    first, last = math.floor(begins) + 1 + _MARGIN, math.floor(ends) - _MARGIN
    # the classes of the seconds in which the looks fell have parts of a second in them
    torn = {second % SECONDS for end in (begins, ends) for second in _around(end)}
    exposed = {
        one: seconds
        for one in range(SECONDS)
        if one not in torn and (seconds := _whole(one, first, last)) > 0
    }
    came = {one: counts.get(one, 0.0) for one in exposed}
    total = sum(came.values())
    if len(exposed) < _LEAST or total <= 0:
        return 1.0
    rate = total / sum(exposed.values())
    squares = sum((came[one] - rate * seconds) ** 2 / (rate * seconds) for one, seconds in exposed.items())
    return squares / (len(exposed) - 1)


def _around(end: float) -> range:
    second = math.floor(end)
    return range(second - _MARGIN, second + _MARGIN + 1)


def _whole(one: int, first: int, last: int) -> int:
    """How many of the seconds from `first` up to and without `last` are of a class."""
    return max(0, (last - first - (one - first) % SECONDS + SECONDS - 1) // SECONDS)

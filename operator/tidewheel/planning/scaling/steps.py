"""From the counts there are to the counts that are wanted: no role runs ahead, and what cannot be placed holds up nothing."""

from __future__ import annotations

import math
from fractions import Fraction

from tidewheel.planning.scaling.combining import runs_combined
from tidewheel.planning.scaling.observed import RoleCounts


def step(prefill: RoleCounts, decode: RoleCounts, wanted: tuple[int, int], *, most: int) -> tuple[int, int]:
    """The counts to ask for next.

    When both roles grow, or both shrink, they are brought to the same share of what is wanted, as far as no role goes
    more than `most` instances. So their skew, |n_p/N_p - n_d/N_d| with N what is wanted, never grows beyond one
    instance of the smaller role: who is behind catches up first, and then both go together. When one grows and the
    other shrinks, the ratio moves the right way whatever the order, and each goes as far as it may. A role with
    instances that no node has room for is asked for no more; the other one goes on.

    Prefills that are to go for good, since decodes are to do both, go together, and only once as many decodes are asked for as
    are wanted; those that are to come where there are none come together, too. For a part of them could not carry the load.

    Args:
        prefill: what there is of prefills.
        decode: what there is of decodes.
        wanted: prefills and decodes in the end; no prefills where decodes are to do both.
        most: instances of one role that one step may add or take away, at least 1.
    """
    have = (prefill.asked, decode.asked)
    ends = [
        here if counts.unplaceable and end > here else end
        for counts, here, end in zip((prefill, decode), have, wanted, strict=True)
    ]
    near = [min(max(end, here - most), here + most) for here, end in zip(have, ends, strict=True)]
    if runs_combined((ends[0], ends[1])):
        return (have[0] if near[1] < ends[1] else 0), near[1]
    if runs_combined(have):
        return ends[0], near[1]
    if min(ends) < 1:
        return near[0], near[1]
    shares = [Fraction(count, end) for count, end in zip(near, ends, strict=True)]
    if all(end >= here for here, end in zip(have, ends, strict=True)):
        together = min(shares)
        first, second = (max(here, math.floor(together * end)) for here, end in zip(have, ends, strict=True))
    elif all(end <= here for here, end in zip(have, ends, strict=True)):
        together = max(shares)
        first, second = (min(here, math.ceil(together * end)) for here, end in zip(have, ends, strict=True))
    else:
        first, second = near
    return first, second

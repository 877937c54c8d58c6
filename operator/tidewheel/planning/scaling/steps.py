"""From the counts there are to the counts that are wanted: both roles advance together, and what cannot be placed holds up nothing."""

from __future__ import annotations

from tidewheel.planning.scaling.observed import RoleCounts


def step(prefill: RoleCounts, decode: RoleCounts, wanted: tuple[int, int], *, most: int) -> tuple[int, int]:
    """The counts to ask for next.

    The role with the longer way goes `most` instances, and the other the same part of its way: so the two have come
    equally far but for an instance or two, by rounding, and the ratio on the way lies between the old and the new. A role with instances that no node has room for is asked for no more; the other one goes on.

    Args:
        prefill: what there is of prefills.
        decode: what there is of decodes.
        wanted: prefills and decodes in the end.
        most: instances of one role that one step may add or take away, at least 1.
    """
    have = (prefill.asked, decode.asked)
    ways = [end - here for end, here in zip(wanted, have, strict=True)]
    for role, counts in enumerate((prefill, decode)):
        if counts.unplaceable and ways[role] > 0:
            ways[role] = 0
    longest = max(abs(ways[0]), abs(ways[1]))
    if longest <= most:
        return have[0] + ways[0], have[1] + ways[1]
    first, second = (_part(way, most, longest) for way in ways)
    return have[0] + first, have[1] + second


def _part(way: int, most: int, longest: int) -> int:
    """`way * most / longest`, rounded to the nearest."""
    size = (2 * abs(way) * most + longest) // (2 * longest)
    return size if way > 0 else -size

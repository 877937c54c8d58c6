"""What is told of the time that pods take to start."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.ranktable import Role
from tidewheel.api.scaling import ScalingStatus, StartupStatus
from tidewheel.planning.autoscaling.startup import Startups
from tidewheel.planning.decisions import Deed

#: A change by a smaller part is told in the status alone.
_TOLD = 0.2


def startup_status(spec: PDServiceSpec, startups: Startups) -> StartupStatus:
    """What is counted on after a window."""
    prefill, decode = startups.or_longer(float(spec.scaling.startup_seconds))
    return StartupStatus(
        prefill_seconds=math.ceil(prefill),
        decode_seconds=math.ceil(decode),
        prefill_measured=len(startups.prefill),
        decode_measured=len(startups.decode),
    )


def startup_deeds(spec: PDServiceSpec, now: StartupStatus, told: ScalingStatus | None) -> Iterator[Deed]:
    """Where the planner looks clearly farther ahead, or less far, than it did."""
    configured = spec.scaling.startup_seconds
    before = told.startup if told is not None else None
    changes: tuple[tuple[Role, int, int, int], ...] = (
        (
            "prefill",
            before.prefill_seconds if before else configured,
            now.prefill_seconds,
            now.prefill_measured,
        ),
        ("decode", before.decode_seconds if before else configured, now.decode_seconds, now.decode_measured),
    )
    for role, was, seconds, measured in changes:
        if abs(seconds - was) <= _TOLD * max(was, 1) or seconds == was:
            continue
        by = f"the last {measured} that started" if seconds > configured else "spec.scaling.startupSeconds"
        yield Deed(
            action="LookAhead",
            reason="StartupMeasured",
            message=f"a {role} pod is taken to need {seconds} s until it serves, by {by}; it was {was} s",
        )

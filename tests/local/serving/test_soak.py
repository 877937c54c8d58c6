"""The fault soak in its short form: `make soak` runs the same for ten minutes."""

from __future__ import annotations

import uvloop
from tests.soak.soak import Options, soak

SHORT = Options(
    seconds=9,
    seed=5,
    clients=10,
    gap_seconds=0.6,
    calm_seconds=1,
    engine="stand-in:step_ms=4,prefill_ms=5",
    prefills=2,
    decodes=2,
)


def test_nothing_is_lost_and_nothing_leaks_while_things_go_wrong(tmp_path):
    done = uvloop.run(soak(SHORT, tmp_path, print))
    assert {one.fault.kind.name for one in done.windows} >= {"kill", "stall", "cut"}
    assert done.figures["requests answered"] > 50
    assert [(one.name, one.value, one.examples) for one in done.checks if not one.holds] == []

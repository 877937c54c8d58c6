"""A device, loads and counts for tests of the scaling planner; each names only what matters to it."""

from __future__ import annotations

from tidewheel.planning.scaling.observed import RoleCounts, ScenarioLoad
from tidewheel.planning.scaling.profile import DecodeLaw, DeviceProfile, PrefillLaw
from tidewheel.planning.scaling.scenario import Counts
from tidewheel.planning.scaling.sizing import Targets, Workload

#: 0.1 s for a prompt of 1,000 tokens; 10 ms for an iteration of one sequence and 40 ms for one of 300 with short contexts.
DEVICE = DeviceProfile(
    name="test",
    prefill=PrefillLaw(base_seconds=0.0, seconds_per_token=1e-4),
    decode=DecodeLaw(base_seconds=0.01, seconds_per_sequence=1e-4, seconds_per_kv_token=0.0),
    decode_slots=512,
    kv_tokens=10_000_000,
)
TARGETS = Targets(ttft_seconds=1.0, tpot_seconds=0.02, attainment=0.99)
#: Prompts of 1,000 tokens and answers of 100, all alike.
WORK = Workload(
    prompt_tokens=1000.0, prompt_tokens_squared=1e6, answer_tokens=100.0, answer_tokens_squared=1e4
)


def load(rate: float = 10.0, *, seconds: float = 30.0, **more) -> ScenarioLoad:
    """A window with so many requests per second."""
    arrivals = round(rate * seconds)
    given = {"prompt_tokens": 1000.0, "answer_tokens": 100.0, "finished": arrivals, **more}
    return ScenarioLoad(seconds=seconds, arrivals=arrivals, **given)


def counts(prefill: int, decode: int, **more) -> Counts:
    """Ready instances; `starting`, `leaving` and `unplaceable` are pairs of prefill and decode."""
    roles = [
        RoleCounts(ready=ready, **{name: pair[at] for name, pair in more.items()})
        for at, ready in enumerate((prefill, decode))
    ]
    return Counts(prefill=roles[0], decode=roles[1])

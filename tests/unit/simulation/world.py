"""Small services, devices and requests for the simulator's tests."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tidewheel.planning.scaling.profile import DecodeLaw, DeviceProfile, PrefillLaw
from tidewheel.simulation.forwarding import OnDemand
from tidewheel.simulation.outcomes import Run
from tidewheel.simulation.service import ServiceSettings, simulate
from tidewheel.simulation.sources import OpenLoop
from tidewheel.simulation.traces import Request

#: A second for 1,000 tokens of a prompt, 10 ms for an iteration of one sequence and 1 ms for each other.
DEVICE = DeviceProfile(
    name="round numbers",
    prefill=PrefillLaw(base_seconds=0.0, seconds_per_token=0.001),
    decode=DecodeLaw(base_seconds=0.009, seconds_per_sequence=0.001, seconds_per_kv_token=0.0),
    prefill_slots=2,
    decode_slots=8,
    kv_tokens=100_000,
)


def request(at: float = 0.0, prompt: int = 1000, answer: int = 10, **more) -> Request:
    return Request(at=at, prompt_tokens=prompt, answer_tokens=answer, **more)


def on_demand(slots: int = 2, *, ends_early: bool = True):
    return partial(OnDemand, slots=slots, ends_early=ends_early)


def settings(**changes) -> ServiceSettings:
    known = {"profile": DEVICE, "prefills": 1, "decodes": 1, "make_gateway": on_demand()}
    return ServiceSettings(**(known | changes))


def run(requests, planner=None, **changes) -> Run:
    return simulate(settings(**changes), OpenLoop(requests), planner)


def device(**changes) -> DeviceProfile:
    return replace(DEVICE, **changes)

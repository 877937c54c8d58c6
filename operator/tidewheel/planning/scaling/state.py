"""What the scaling planner remembers of one scenario, small and in a form that survives a restart to the last bit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tidewheel.planning.scaling.combining import Choice
from tidewheel.planning.scaling.forecast import Season, Series
from tidewheel.planning.scaling.observed import ScenarioLoad
from tidewheel.planning.scaling.online import SignState
from tidewheel.planning.scaling.sizing import Workload
from tidewheel.planning.stored import read_stored

SCHEMA = 1
#: How long requests count for what the scenario's requests are like: in windows, and at most in seconds.
_MEMORY_WINDOWS, _MEMORY_SECONDS = 30, 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A need that is not undercut until it is old: minimum holding time by the largest of the last ones."""

    at: float
    prefill: int
    decode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingState:
    """Everything that the next decision depends on beside the spec, the counts and the window."""

    arrivals: float = 0.0  # those that count in `work`, faded
    finished: float = 0.0
    work: Workload = field(default_factory=Workload)
    season: Season = field(default_factory=Season)
    prefill: Series = field(default_factory=Series)  # seconds of prefill per second
    decode: Series = field(default_factory=Series)  # requests per second
    held: tuple[Held, ...] = ()
    watched: float = 0.0  # seconds for which needs were noted, up to the holding time
    sign: SignState = field(default_factory=SignState)
    choice: Choice = field(default_factory=Choice)

    @property
    def knows_requests(self) -> bool:
        """Whether enough is known of the requests to size anything."""
        return self.arrivals > 0 and self.work.prompt_tokens > 0


def remember(state: ScalingState, load: ScenarioLoad) -> ScalingState:
    """What requests are like after a window: means over arrivals that fade within thirty windows or a quarter of an hour."""
    fade = math.exp(-load.seconds / min(_MEMORY_SECONDS, _MEMORY_WINDOWS * load.seconds))
    arrivals = state.arrivals * fade + load.arrivals
    finished = state.finished * fade + load.finished
    old, new = state.work, {}
    if load.arrivals:
        share = load.arrivals / arrivals
        new["prompt_tokens"] = _moved(old.prompt_tokens, load.prompt_tokens, share)
        squared = load.prompt_tokens_squared or load.prompt_tokens**2
        new["prompt_tokens_squared"] = _moved(old.prompt_tokens_squared, squared, share)
        new["prefix_factor"] = _moved(old.prefix_factor, load.prefix_factor, share)
        new["arrival_dispersion"] = _moved(old.arrival_dispersion, load.arrival_dispersion, share)
    if load.finished and load.answer_tokens > 0:
        share = load.finished / finished
        new["answer_tokens"] = _moved(old.answer_tokens, load.answer_tokens, share)
        squared = load.answer_tokens_squared or load.answer_tokens**2
        new["answer_tokens_squared"] = _moved(old.answer_tokens_squared, squared, share)
        new["transfer_seconds"] = _moved(old.transfer_seconds, load.transfer_seconds, share)
    return replace(state, arrivals=arrivals, finished=finished, work=replace(old, **new) if new else old)


def corrected(
    state: ScalingState, *, prefill: float | None, decode: float | None, share: float
) -> ScalingState:
    """With measured over expected service times taken in; within a half and the double, for a wrong unit is no device."""
    new = {}
    for field_name, measured in (("prefill_correction", prefill), ("decode_correction", decode)):
        if measured is not None:
            bounded = min(2.0, max(0.5, measured))
            new[field_name] = _moved(getattr(state.work, field_name), bounded, share)
    return replace(state, work=replace(state.work, **new)) if new else state


def to_text(state: ScalingState) -> str:
    """Compact JSON; `from_text` gives the very same state."""
    document = {
        "schema": SCHEMA,
        "arrivals": state.arrivals,
        "finished": state.finished,
        "work": _listed(state.work),
        "season": state.season.hours,
        "prefill": _listed(state.prefill),
        "decode": _listed(state.decode),
        "held": [[one.at, one.prefill, one.decode] for one in state.held],
        "watched": state.watched,
        "sign": _listed(state.sign),
        "choice": _listed(state.choice),
    }
    return json.dumps(document, separators=(",", ":"))


def from_text(text: str) -> ScalingState:
    """What `to_text` wrote.

    Raises:
        UnreadableState: it is something else.
    """
    return read_stored(text, _state, schema=SCHEMA, what="scaling state")


def _state(document: Mapping[str, Any]) -> ScalingState:
    return ScalingState(
        arrivals=document["arrivals"],
        finished=document["finished"],
        work=_filled(Workload, document["work"]),
        season=Season(hours=tuple(document["season"])),
        prefill=_filled(Series, document["prefill"]),
        decode=_filled(Series, document["decode"]),
        held=tuple(Held(at=at, prefill=p, decode=d) for at, p, d in document["held"]),
        watched=document["watched"],
        sign=_filled(SignState, document["sign"]),
        # an earlier release had no choice
        choice=_filled(Choice, document["choice"]) if "choice" in document else Choice(),
    )


def _listed(value: Any) -> list[Any]:
    return [getattr(value, one.name) for one in fields(value)]


def _filled(kind: Any, values: list[Any]) -> Any:
    names = [one.name for one in fields(kind)]
    return kind(**{name: _frozen(value) for name, value in zip(names, values, strict=True)})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def _moved(old: float, new: float, share: float) -> float:
    return old + share * (new - old)

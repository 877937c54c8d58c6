"""What planning a service's numbers remembers between windows and restarts: one text, equal after every repeat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tidewheel.planning.autoscaling.startup import Startups
from tidewheel.planning.scaling.state import ScalingState, from_text, to_text
from tidewheel.planning.stored import read_stored

_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The pods that a scenario should have over all its groups, and why."""

    prefill: int
    decode: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Everything that the next decision depends on beside the spec and what is seen."""

    #: When the last window ended that was decided on, in seconds since the Unix epoch.
    at: float = 0.0
    #: The numbers in force, by scenario; none before the first decision.
    numbers: Mapping[str, Numbers] = field(default_factory=dict)
    states: Mapping[str, ScalingState] = field(default_factory=dict)
    startups: Startups = field(default_factory=Startups)

    def to_text(self) -> str:
        """Compact JSON, which `from_text` reads back as the very same memory."""
        document = {
            "schema": _SCHEMA,
            "at": self.at,
            "numbers": {
                name: [one.prefill, one.decode, one.reason] for name, one in sorted(self.numbers.items())
            },
            "states": {name: to_text(state) for name, state in sorted(self.states.items())},
            "startups": self.startups.to_document(),
        }
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Memory:
        """What `to_text` wrote.

        Raises:
            UnreadableState: it is something else.
        """
        return read_stored(text, _memory, schema=_SCHEMA, what="memory of scaling")


def _memory(document: Mapping[str, Any]) -> Memory:
    return Memory(
        at=float(document["at"]),
        numbers={
            name: Numbers(prefill=int(prefill), decode=int(decode), reason=str(reason))
            for name, (prefill, decode, reason) in document["numbers"].items()
        },
        states={name: from_text(state) for name, state in document["states"].items()},
        # an earlier release did not measure them
        startups=Startups.from_document(document["startups"]) if "startups" in document else Startups(),
    )

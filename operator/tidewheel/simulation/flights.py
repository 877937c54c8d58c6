"""One request on its way through a simulated service, and what became of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tidewheel.simulation.decode import Decode
    from tidewheel.simulation.prefill import Prefill
    from tidewheel.simulation.traces import Request

#: How a request ended: answered, told early that its first token could not come in time, given up by its client, or lost
#: with an instance.
Ending = Literal["answered", "shed", "expired", "failed"]


@dataclass(slots=True, eq=False)
class Flight:
    """A request under way; times are seconds of the simulation, NaN where that has not happened."""

    number: int
    request: Request
    deadline: float  # of the first token
    prefill: Prefill | None = None
    decode: Decode | None = None
    cached_tokens: int = 0
    asked_at: float = math.nan  # a prefill took it
    prefilled_at: float = math.nan
    transferred_at: float = math.nan
    first_token_at: float = math.nan
    ended_at: float = math.nan
    ending: Ending | None = None
    why: str = ""
    attempts: int = 0
    generated: int = 0  # tokens that the client has from a decode that was lost

    @property
    def context_tokens(self) -> int:
        """Tokens whose KV a decode needs before its first iteration."""
        return self.request.prompt_tokens + self.generated

    @property
    def is_streaming(self) -> bool:
        """Whether the client has tokens, or will have the first at the end of an iteration that runs."""
        return not math.isnan(self.first_token_at)

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.first_token_at - self.request.at

    @property
    def tpot(self) -> float:
        """Mean seconds between tokens of the answer; 0 of a single one."""
        rest = self.request.answer_tokens - 1
        return (self.ended_at - self.first_token_at) / rest if rest else 0.0

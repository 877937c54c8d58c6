"""What each engine does for the benchmark; every call ends with the chosen tokens in host memory."""

from __future__ import annotations

from typing import Protocol


class Arm(Protocol):
    """One engine with one kind of weights."""

    weight_bytes: int  # read once per decode step
    kv_bytes: int  # read per token of context, sequence and decode step

    def prefill(self, tokens: list[int]) -> int:
        """Compute a prompt from nothing; the likeliest next token."""

    def start(self, tokens: list[int], batch: int, steps: int) -> None:
        """Let so many sequences begin with this prompt, with room for so many steps; not timed."""

    def step(self) -> list[int]:
        """One more token for each of them."""

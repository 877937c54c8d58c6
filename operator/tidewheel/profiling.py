"""What the measurements of `tidewheel profile` mean: laws, and what a PDService's spec says of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from rich.table import Table

from tidewheel.api.scaling import DecodeProfile, PrefillProfile, Profile
from tidewheel.planning.scaling.profile import BadProfile, DecodeLaw, PrefillLaw
from tidewheel.simulation.profiles import Point, fitted, fitted_prefill, read_points


class TooLittleMeasured(ValueError):
    """The measurements do not tell the laws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All measurements, and the laws that they follow."""

    points: tuple[Point, ...]
    prefill: PrefillLaw
    decode: DecodeLaw

    @classmethod
    def read(cls, lines: Iterable[str]) -> Self:
        """From rows `role,tokens,batch,seconds`.

        Raises:
            BadProfile: a row is unreadable.
            TooLittleMeasured: as `of`.
        """
        return cls.of(read_points(lines))

    @classmethod
    def of(cls, points: Sequence[Point]) -> Self:
        """Fits the laws.

        Raises:
            TooLittleMeasured: too little was measured.
        """
        prompts = [(one.tokens, one.seconds) for one in points if one.role == "prefill"]
        iterations = [(one.batch, one.tokens, one.seconds) for one in points if one.role == "decode"]
        if len(prompts) < 2 or len(iterations) < 3:
            raise TooLittleMeasured(
                f"{len(prompts)} prompts and {len(iterations)} iterations say too little; ask for two "
                "lengths of prompts, and for several batches and contexts"
            )
        try:
            return cls(points=tuple(points), prefill=fitted_prefill(prompts), decode=fitted(iterations))
        except BadProfile as error:
            raise TooLittleMeasured(str(error)) from error

    @property
    def profile(self) -> Profile:
        """The laws as `spec.scaling.profile` has them, in whole numbers."""
        return Profile(
            prefill=PrefillProfile(
                base_microseconds=round(self.prefill.base_seconds * 1e6),
                nanoseconds_per_token=max(1, round(self.prefill.seconds_per_token * 1e9)),
                femtoseconds_per_token_squared=round(self.prefill.seconds_per_token_squared * 1e15),
            ),
            decode=DecodeProfile(
                base_microseconds=max(1, round(self.decode.base_seconds * 1e6)),
                nanoseconds_per_sequence=round(self.decode.seconds_per_sequence * 1e9),
                picoseconds_per_kv_token=round(self.decode.seconds_per_kv_token * 1e12),
            ),
        )

    def expected(self, point: Point) -> float:
        """What the laws say of a measurement, in seconds."""
        if point.role == "prefill":
            return self.prefill.seconds(point.tokens)
        return self.decode.seconds(point.batch, point.tokens)

    def table(self) -> Table:
        """For people."""
        table = Table(title="One prefill and one decode: measured, and as the fitted laws have it")
        for name in ("role", "tokens", "batch", "ms", "law ms", "tokens/s"):
            table.add_column(name, justify="left" if name == "role" else "right")
        for one in self.points:
            tokens = one.tokens if one.role == "prefill" else one.batch
            table.add_row(
                one.role,
                f"{one.tokens:.0f}",
                f"{one.batch:.0f}",
                f"{1000 * one.seconds:.2f}",
                f"{1000 * self.expected(one):.2f}",
                f"{tokens / one.seconds:,.0f}",
            )
        return table

"""What one device can do: seconds of a prefill, of a decode iteration and of a KV transfer, as laws or as measured tables."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


class BadProfile(ValueError):
    """A profile's numbers describe no device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillLaw:
    """Prefill time in closed form: a constant, a part for each token and a part for each pair of tokens (attention).

    A prompt whose first tokens are cached pays for its new tokens only, which still attend to the cached ones:
    base + linear·n + quadratic·((c + n)² − c²) for n new tokens after c cached ones.
    """

    base_seconds: float
    seconds_per_token: float
    seconds_per_token_squared: float = 0.0

    def __post_init__(self) -> None:
        if self.seconds_per_token < 0 or self.seconds_per_token_squared < 0:
            raise BadProfile("a prefill's seconds per token are negative; refit the profile")

    def seconds(self, new_tokens: float, cached_tokens: float = 0.0) -> float:
        """Of one prompt, never negative."""
        return self.batch_seconds(((new_tokens, cached_tokens),))

    def batch_seconds(self, parts: Iterable[tuple[float, float]]) -> float:
        """Of several prompts' parts computed at once, each of (new tokens, cached tokens): the constant is paid once."""
        seconds = self.base_seconds
        for new, cached in parts:
            seconds += self.seconds_per_token * new
            seconds += self.seconds_per_token_squared * new * (new + 2 * cached)
        return max(0.0, seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillTable:
    """Measured prefill times by prompt length, interpolated linearly; the outermost segments go on beyond the ends.

    A prompt whose first tokens are cached takes what the whole takes less what the cached part takes, and the
    constant part again.
    """

    tokens: tuple[float, ...]
    seconds_at: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_axis("prefill tokens", self.tokens)
        if len(self.seconds_at) != len(self.tokens):
            raise BadProfile(
                f"{len(self.tokens)} prompt lengths have {len(self.seconds_at)} prefill times; give one for each"
            )
        if any(later < sooner for sooner, later in pairwise(self.seconds_at)):
            raise BadProfile("prefill times fall with the prompt's length; measure again")

    def seconds(self, new_tokens: float, cached_tokens: float = 0.0) -> float:
        """Of one prompt, never negative."""
        if not cached_tokens:
            return max(0.0, self._at(new_tokens))
        return self.batch_seconds(((new_tokens, cached_tokens),))

    def batch_seconds(self, parts: Iterable[tuple[float, float]]) -> float:
        """Of several prompts' parts computed at once, each of (new tokens, cached tokens): the constant is paid once."""
        seconds = max(0.0, self._at(0))
        for new, cached in parts:
            seconds += self._at(cached + new) - self._at(cached)
        return seconds

    def _at(self, tokens: float) -> float:
        at, share = _segment(self.tokens, tokens)
        return self.seconds_at[at] + share * (self.seconds_at[at + 1] - self.seconds_at[at])


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLaw:
    """One iteration in closed form: weights are read once, every sequence is computed, all its KV is read."""

    base_seconds: float
    seconds_per_sequence: float
    seconds_per_kv_token: float

    def __post_init__(self) -> None:
        if min(self.base_seconds, self.seconds_per_sequence, self.seconds_per_kv_token) < 0:
            raise BadProfile("a part of a decode iteration takes negative time; refit the profile")

    def seconds(self, batch: float, context_tokens: float) -> float:
        """Of an iteration of `batch` sequences whose contexts have so many tokens on average."""
        kv_tokens = batch * context_tokens
        return self.base_seconds + self.seconds_per_sequence * batch + self.seconds_per_kv_token * kv_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTable:
    """Measured iteration times by KV tokens in use (rows) and context length of each sequence (columns).

    Bilinear in between, as NVIDIA Dynamo's planner reads its profiles; contexts beyond the ends count as the outermost,
    since there the table says nothing, while KV beyond the last row goes on as the last two rows do.
    """

    kv_tokens: tuple[float, ...]
    context_tokens: tuple[float, ...]
    seconds_at: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        _check_axis("KV tokens", self.kv_tokens)
        _check_axis("context tokens", self.context_tokens)
        shape = {len(row) for row in self.seconds_at}
        if len(self.seconds_at) != len(self.kv_tokens) or shape != {len(self.context_tokens)}:
            raise BadProfile(
                f"decode times are not {len(self.kv_tokens)} rows of {len(self.context_tokens)}; "
                "give a row for each number of KV tokens and in it a time for each context length"
            )

    def seconds(self, batch: float, context_tokens: float) -> float:
        """Of an iteration of `batch` sequences whose contexts have so many tokens on average."""
        row, down = _segment(self.kv_tokens, max(batch * context_tokens, self.kv_tokens[0]))
        inside = min(max(context_tokens, self.context_tokens[0]), self.context_tokens[-1])
        column, across = _segment(self.context_tokens, inside)
        above, below = (
            line[column] + across * (line[column + 1] - line[column])
            for line in (self.seconds_at[row], self.seconds_at[row + 1])
        )
        return max(0.0, above + down * (below - above))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """One instance of a role on one kind of device with one model: service times and room.

    Times are seconds and lengths are tokens. The same profile speaks for both roles; each reads its own part.
    """

    name: str
    prefill: PrefillLaw | PrefillTable
    decode: DecodeLaw | DecodeTable
    #: Prompts that a prefill holds at a time: P/D-Serve's b_p.
    prefill_slots: int = 4
    #: Sequences that a decode holds at a time: at most P/D-Serve's b_d.
    decode_slots: int = 256
    #: Tokens of KV cache of one decode.
    kv_tokens: int
    #: The transfer's constant part, such as the one message about where the KV lies.
    transfer_base_seconds: float = 0.0
    transfer_seconds_per_token: float = 0.0

    def __post_init__(self) -> None:
        if min(self.prefill_slots, self.decode_slots, self.kv_tokens) < 1:
            raise BadProfile(
                f"{self.name}: prefill_slots, decode_slots and kv_tokens are {self.prefill_slots}, "
                f"{self.decode_slots} and {self.kv_tokens}; each must be 1 or more"
            )
        if min(self.transfer_base_seconds, self.transfer_seconds_per_token) < 0:
            raise BadProfile(f"{self.name}: a KV transfer takes negative time")

    def prefill_seconds(self, new_tokens: float, cached_tokens: float = 0.0) -> float:
        """Of one prompt alone on an instance: P/D-Serve's T_p at batch size 1.

        Args:
            new_tokens: to compute.
            cached_tokens: before them, whose KV is there already.
        """
        return self.prefill.seconds(new_tokens, cached_tokens)

    def prefill_batch_seconds(self, parts: Iterable[tuple[float, float]]) -> float:
        """Of parts of several prompts computed at once, each of (new tokens, tokens cached before them)."""
        return self.prefill.batch_seconds(parts)

    def decode_seconds(self, batch: float, context_tokens: float) -> float:
        """Of one iteration of a whole batch, which gives each sequence a token: TPOT at that batch.

        Args:
            batch: sequences in it.
            context_tokens: mean over the sequences of prompt and answer so far.
        """
        return self.decode.seconds(batch, context_tokens)

    def transfer_seconds(self, tokens: float) -> float:
        """Of a prompt's KV from a prefill to a decode when nothing else is on the link: ξ in P/D-Serve."""
        return self.transfer_base_seconds + self.transfer_seconds_per_token * tokens

    def decode_batch(self, tpot_seconds: float, context_tokens: float) -> int:
        """The most sequences that one decode serves within a TPOT: b_d for P/D-Serve's Eq. 1 under an objective.

        Bounded by slots and by KV room as well; 0 when even one sequence is too slow or too long.
        Iteration times must not fall as the batch grows.
        """
        most = min(self.decode_slots, int(self.kv_tokens // max(1.0, context_tokens)))
        fits, fails = 0, most + 1
        while fails - fits > 1:
            batch = (fits + fails) // 2
            if self.decode_seconds(batch, context_tokens) <= tpot_seconds:
                fits = batch
            else:
                fails = batch
        return fits


def _segment(axis: Sequence[float], value: float) -> tuple[int, float]:
    """The segment of an axis for a value, and how far along it the value lies; beyond the ends, the outermost ones."""
    at = min(max(bisect_right(axis, value) - 1, 0), len(axis) - 2)
    return at, (value - axis[at]) / (axis[at + 1] - axis[at])


def _check_axis(name: str, axis: Sequence[float]) -> None:
    if len(axis) < 2 or any(later <= sooner for sooner, later in pairwise(axis)):
        raise BadProfile(
            f"the {name} of a profile are no rising axis of two or more; sort them, drop repeats"
        )

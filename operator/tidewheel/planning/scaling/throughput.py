"""P/D-Serve's model of throughput: what a number of prefills and decodes carries, and at which ratio neither waits.

All formulas are from P/D-Serve (arXiv 2408.08147), §2.1. They know no randomness and no objective: `sizing` adds both.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Bottleneck = Literal["prefill", "decode", "traffic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleService:
    """How one role's instance works at the operating point."""

    batch_seconds: float  # T_p or T_d: how long a batch holds an instance
    batch_size: float  # b_p or b_d

    def __post_init__(self) -> None:
        if self.batch_seconds <= 0 or self.batch_size <= 0:
            raise ValueError(
                f"a batch of {self.batch_size} in {self.batch_seconds} s is no service; measure a window with requests"
            )

    @property
    def rate(self) -> float:
        """Requests per second of one instance: b / T."""
        return self.batch_size / self.batch_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What a scenario carries."""

    requests: float  # per second, of all instances together
    per_instance: float  # Φ
    bottleneck: Bottleneck


def prefill_batch_seconds(ttft_seconds: float, prefix_factor: float) -> float:
    """T_p = TTFT_bs · r_pre.

    Args:
        ttft_seconds: TTFT_bs, of a batch without cached prefixes.
        prefix_factor: r_pre, in (0, 1].

    Raises:
        ValueError: the prefix factor is outside (0, 1].
    """
    if not 0 < prefix_factor <= 1:
        raise ValueError(f"a prefix factor of {prefix_factor} is outside (0, 1]; without caching it is 1")
    return ttft_seconds * prefix_factor


def decode_batch_seconds(transfer_seconds: float, tpot_seconds: float, answer_tokens: float) -> float:
    """T_d = ξ + TPOT_bs · G.

    Args:
        transfer_seconds: ξ, the longest of the transfers that one prompt's KV is split into.
        tpot_seconds: TPOT_bs, of the whole batch.
        answer_tokens: G, mean number of generated tokens.
    """
    return transfer_seconds + tpot_seconds * answer_tokens


def throughput(
    offered: float, prefill: RoleService, decode: RoleService, prefills: int, decodes: int
) -> Throughput:
    """Φ = min{I_t, n_p b_p / T_p, n_d b_d / T_d} / (n_p + n_d), with what binds.

    Args:
        offered: I_t, requests per second.
        prefill: of one prefill.
        decode: of one decode.
        prefills: n_p, at least 1.
        decodes: n_d, at least 1.

    Raises:
        ValueError: a role has no instance, so that nothing is served.
    """
    if min(prefills, decodes) < 1:
        raise ValueError(f"{prefills} prefills and {decodes} decodes serve nothing; keep one of each")
    by_prefill, by_decode = prefills * prefill.rate, decodes * decode.rate
    carried = min(offered, by_prefill, by_decode)
    bottleneck: Bottleneck = "traffic"
    if carried < offered:
        bottleneck = "prefill" if by_prefill <= by_decode else "decode"
    return Throughput(requests=carried, per_instance=carried / (prefills + decodes), bottleneck=bottleneck)


def balanced_ratio(prefill: RoleService, decode: RoleService, *, most: int = 64) -> Fraction:
    """Eq. 1: prefills over decodes at which neither waits for the other.

    n_p b_p / T_p = n_d b_d / T_d, so n_p / n_d = b_d T_p / (b_p T_d), rounded to a fraction of integers up to `most`.
    b_d, and T_d with it, depends on the load: take both at the operating point, and again when that moved.
    """
    exact = Fraction(decode.rate / prefill.rate)
    if exact >= 1:
        return 1 / (1 / min(exact, Fraction(most))).limit_denominator(most)
    return max(exact, Fraction(1, most)).limit_denominator(most)


def best_split(instances: int, offered: float, prefill: RoleService, decode: RoleService) -> tuple[int, int]:
    """The integers n_p + n_d = `instances`, each at least 1, that carry most; of equals the one nearest to Eq. 1.

    The min of a rising and a falling line is largest where they cross, so one of the integers around the crossing is
    best: no search is needed.

    Raises:
        ValueError: fewer than two instances.
    """
    if instances < 2:
        raise ValueError(f"{instances} instances cannot hold a prefill and a decode; give 2 or more")
    crossing = instances * decode.rate / (prefill.rate + decode.rate)
    near = {min(max(int(crossing) + step, 1), instances - 1) for step in (0, 1)}
    prefills = max(
        sorted(near),
        key=lambda n: (
            throughput(offered, prefill, decode, n, instances - n).requests,
            -abs(n - crossing),
        ),
    )
    return prefills, instances - prefills


def forwarding_target(prefill: RoleService, prefills: int) -> float:
    """Eq. 2: the I_t up to which prompts need not wait, n_p b_p / T_p, in requests per second."""
    return prefills * prefill.rate

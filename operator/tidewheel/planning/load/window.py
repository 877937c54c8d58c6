"""The load of scenarios between two looks at their pods' metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tidewheel.api.arrivals import SECONDS
from tidewheel.api.distribution import Distribution
from tidewheel.planning.load import page
from tidewheel.planning.load.dispersion import index_of_dispersion
from tidewheel.planning.load.page import GAUGES, PodCounts, Series
from tidewheel.planning.scaling.observed import ScenarioLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All pods' metrics at about one moment."""

    at: float  # seconds since the Unix epoch
    #: By the pod's uid. A pod that did not answer is missing.
    pods: Mapping[str, PodCounts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The time between two looks."""

    first: Look
    last: Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Staff:
    """The uids of the pods that serve a scenario; gateways serve all."""

    gateways: Collection[str]
    prefills: Collection[str]
    decodes: Collection[str]


def load_in(
    window: Window,
    *,
    scenarios: Collection[str],
    staff: Staff,
    ttft_seconds: float,
    tpot_seconds: float,
) -> ScenarioLoad:
    """What happened in scenarios that are served together from one look to the next.

    A pod that was not there at first, or whose process began anew, counts from its beginning; what one did that is gone
    at last is not known and left out. T_d has the transfer in it, as in P/D-Serve (arXiv 2408.08147, §2.1); r_pre is
    what the prefix cache left to compute. Requests that wait are divided by how many arrived.

    Args:
        window: between which looks.
        scenarios: as gateways label them.
        staff: their pods.
        ttft_seconds: the promise for the first token.
        tpot_seconds: the promise for each token after it.

    Raises:
        ValueError: the window has no length.
    """
    first, last = window.first, window.last
    seconds = last.at - first.at
    if seconds <= 0:
        raise ValueError(f"a window must end after it begins; this one takes {seconds:g} s")
    gateways = _grown(first, last, staff.gateways)
    prefills = _grown(first, last, staff.prefills)
    decodes = _grown(first, last, staff.decodes)

    def of(name: str) -> Distribution:
        found = Distribution()
        for scenario in scenarios:
            found = found.plus(gateways.distributions.get(Series(name, scenario), Distribution()))
        return found

    def counted(name: str) -> float:
        return sum(gateways.values.get(Series(name, scenario), 0.0) for scenario in scenarios)

    def in_second(second: int) -> float:
        series = (Series(page.ARRIVALS_BY_SECOND, scenario, str(second)) for scenario in scenarios)
        return sum(gateways.values.get(one, 0.0) for one in series)

    ttft, tpot = of(page.TTFT), of(page.TPOT)
    prompts, outputs = of(page.PROMPT_TOKENS), of(page.OUTPUT_TOKENS)
    transfer = _mean(decodes, page.TRANSFER_SECONDS)
    arrivals = counted(page.ARRIVALS)
    all_arrivals = sum(value for series, value in gateways.values.items() if series.name == page.ARRIVALS)
    rejected = counted(page.ENDED_EARLY)
    waiting = gateways.values.get(Series(page.WAITING), 0.0)
    # decodes compute prompts, too, where there are no prefills, or these are busy
    queries, hits = (
        sum(role.values.get(Series(name), 0.0) for role in (prefills, decodes))
        for name in (page.PREFIX_QUERIES, page.PREFIX_HITS)
    )
    in_time = ttft.count * (ttft.share_up_to(ttft_seconds) or 0.0)
    decode_seconds = _mean(decodes, page.DECODE_SECONDS)
    return ScenarioLoad(
        seconds=seconds,
        arrivals=round(arrivals),
        prompt_tokens=prompts.mean or 0.0,
        answer_tokens=outputs.mean or 0.0,
        prompt_tokens_squared=prompts.mean_square or 0.0,
        answer_tokens_squared=outputs.mean_square or 0.0,
        prefix_factor=1.0 - hits / queries if queries > 0 else 1.0,
        finished=round(prompts.count),
        waiting=round(waiting * arrivals / all_arrivals) if all_arrivals else 0,
        rejected=round(rejected),
        prefill_seconds=_mean(prefills, page.PREFILL_SECONDS),
        decode_seconds=decode_seconds + transfer if decode_seconds else 0.0,
        transfer_seconds=transfer,
        ttft_seconds=ttft.mean or 0.0,
        ttft_p90_seconds=ttft.quantile(0.9) or 0.0,
        tpot_p90_seconds=tpot.quantile(0.9) or 0.0,
        e2e_seconds=of(page.DURATION).mean or 0.0,
        ttft_attainment=in_time / (ttft.count + rejected) if ttft.count + rejected else 1.0,
        tpot_attainment=share if (share := tpot.share_up_to(tpot_seconds)) is not None else 1.0,
        arrival_dispersion=index_of_dispersion(
            {second: in_second(second) for second in range(SECONDS)}, begins=first.at, ends=last.at
        ),
    )


def _mean(counts: PodCounts, name: str) -> float:
    return counts.distributions.get(Series(name), Distribution()).mean or 0.0


def _grown(first: Look, last: Look, pods: Collection[str]) -> PodCounts:
    """What these pods counted in between, all together; gauges as they are at last."""
    values: dict[Series, float] = {}
    distributions: dict[Series, Distribution] = {}
    for uid in pods:
        now = last.pods.get(uid)
        if now is None:
            continue
        before = first.pods.get(uid, PodCounts())
        if _began_anew(before, now):
            before = PodCounts()
        for series, value in now.values.items():
            earlier = 0.0 if series.name in GAUGES else before.values.get(series, 0.0)
            values[series] = values.get(series, 0.0) + value - earlier
        for series, found in now.distributions.items():
            grown = found.since(before.distributions.get(series, Distribution()))
            distributions[series] = distributions.get(series, Distribution()).plus(grown)
    return PodCounts(values=values, distributions=distributions)


def _began_anew(before: PodCounts, now: PodCounts) -> bool:
    """Whether a counter fell, as it does only when its process begins anew."""
    fell: Iterable[bool] = (
        now.values.get(series, 0.0) < value
        for series, value in before.values.items()
        if series.name not in GAUGES
    )
    shrank = (
        now.distributions.get(series, Distribution()).count < one.count
        for series, one in before.distributions.items()
    )
    return any(fell) or any(shrank)

"""The simulator against NVIDIA Dynamo's offline replay (ai-dynamo 1.4.2): what that said of the same requests."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from tidewheel.simulation.forwarding import RoundRobin
from tidewheel.simulation.prefill import PrefillRules
from tidewheel.simulation.profiles import H200_FITTED, mocker
from tidewheel.simulation.service import ServiceSettings, simulate
from tidewheel.simulation.sources import ClosedLoop, OpenLoop
from tidewheel.simulation.traces import Request, read_mooncake

CONVERSATION = Path(__file__).parents[3] / "benchmarks" / "data" / "mooncake_conversation.jsonl.gz"


@pytest.mark.parametrize(
    ("prefills", "sequences", "per_second", "ttft_ms", "tpot_ms"),
    [
        (1, 256, 23.5, 14_965, 6.2),
        (2, 256, 46.6, 6797, 7.0),
        (3, 256, 69.1, 3877, 8.3),
        (4, 256, 90.7, 1985, 11.4),
        (5, 256, 100.2, 329, 17.9),
        (6, 256, 80.3, 338, 22.8),
        (7, 512, 58.4, 335, 32.2),
    ],
)
def test_figures_by_ratio_with_400_in_flight(prefills, sequences, per_second, ttft_ms, tpot_ms):
    """2048 prompt and 200 answer tokens, 8 instances, the mocker's own times.

    With the default of 256 sequences (`max_num_seqs`) the two differ at 7:1, 39.7 requests/s against 46.7 of ours: there 144 prompts
    wait for one of a single decode's sequences, and the replay's decode is slowed by their KV as by that of the batch. Where it
    has room for all of them nobody waits, and they agree.
    """
    service = ServiceSettings(
        profile=replace(mocker(), decode_slots=sequences),
        prefills=prefills,
        decodes=8 - prefills,
        make_gateway=RoundRobin,
        prefill_rules=PrefillRules(counts_as_one_prompt=True),
        waits_for_room=False,
    )
    seen = simulate(service, ClosedLoop([Request(at=0, prompt_tokens=2048, answer_tokens=200)] * 4000, 400))
    figures = seen.figures(ttft_seconds=2.0)
    assert 4000 / seen.seconds == pytest.approx(per_second, rel=0.02)
    assert 1000 * figures["ttft mean s"] == pytest.approx(ttft_ms, rel=0.02)
    assert figures["tpot mean ms"] == pytest.approx(tpot_ms, rel=0.03)


@pytest.mark.parametrize(
    ("prefills", "decodes", "good", "ttft", "tpot_ms"),
    [
        (1, 1, 1715, 8.92, 22.9),
        (2, 1, 9250, 1.61, 13.2),
        (3, 1, 10_894, 1.00, 12.7),
        (4, 2, 11_396, 0.74, 8.4),
    ],
)
def test_the_conversation_trace_with_static_counts(prefills, decodes, good, ttft, tpot_ms):
    """12,031 requests round robin, with the replay's echo of answers in prefills and the prefix that all share."""
    with gzip.open(CONVERSATION, "rt") as lines:
        requests = read_mooncake(lines)
    service = ServiceSettings(
        profile=H200_FITTED,
        prefills=prefills,
        decodes=decodes,
        make_gateway=RoundRobin,
        ttft_seconds=2.0,
        prefill_rules=PrefillRules(counts_as_one_prompt=True, echoes_answers=True, cached_blocks=1845),
        waits_for_room=False,
    )
    seen = simulate(service, OpenLoop(requests))
    figures = seen.figures(ttft_seconds=2.0)
    assert figures["good"] == pytest.approx(good, rel=0.05)
    assert figures["ttft mean s"] == pytest.approx(ttft, rel=0.05)
    assert figures["tpot mean ms"] == pytest.approx(tpot_ms, rel=0.05)

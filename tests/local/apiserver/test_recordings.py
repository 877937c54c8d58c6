"""Every exchange that was recorded against a real kube-apiserver gets the same answer here."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.local.apiserver.conftest import ServerThread
from tests.local.apiserver.recorded import Answer, Exchange, Identities, comparable, exchanges, replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something that this server answers otherwise, on purpose: paths that are not compared, and why."""

    file: str
    steps: tuple[int, ...]
    paths: tuple[str, ...]
    reason: str


SCHEDULER = "managedFields/manager=kube-scheduler"

DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        file="discovery",
        steps=(0,),
        paths=("gitVersion", "gitCommit", "goVersion", "compiler"),
        reason="a client can see that it does not talk to the real kube-apiserver",
    ),
    Difference(
        file="apply",
        steps=(12,),
        paths=(f"metadata/{SCHEDULER}", "status/conditions"),
        reason="no scheduler runs in this test; the recorded one had said that there is no node",
    ),
    Difference(
        file="pods",
        steps=(4,),
        paths=(f"items/*/metadata/{SCHEDULER}",),
        reason="no scheduler runs in this test; the recorded one owned the condition that the binding replaced",
    ),
    Difference(
        file="pods",
        steps=(5, 7, 8, 12, 13, 14),
        paths=(f"metadata/{SCHEDULER}",),
        reason="no scheduler runs in this test; the recorded one owned the condition that the binding replaced",
    ),
    Difference(
        file="pods",
        steps=(6,),
        paths=(f"rows/*/object/metadata/{SCHEDULER}",),
        reason="no scheduler runs in this test; the recorded one owned the condition that the binding replaced",
    ),
    Difference(
        file="pods",
        steps=(19,),
        paths=(f"metadata/{SCHEDULER}", "status/conditions"),
        reason="no scheduler runs in this test; the recorded one had said that there is no node",
    ),
    Difference(
        file="pods",
        steps=(25,),
        paths=("metadata/annotations", "metadata/managedFields/manager=kube-controller-manager"),
        reason="kube-controller-manager notes in each node how long kubelets may keep Secrets; no kubelet is here",
    ),
)

EXCHANGES = exchanges()


@pytest.fixture(scope="module")
def replayed() -> Iterator[tuple[dict[str, Answer], Identities]]:
    # One moment for everything: the order of managed fields with equal times does not hang on the machine's speed.
    running = ServerThread(clock=lambda: datetime(2026, 11, 22, 8, 52, tzinfo=UTC))
    try:
        yield asyncio.run(replay(running.url))
    finally:
        running.stop()


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.id)
def test_the_answer_is_that_of_the_real_server(
    exchange: Exchange, replayed: tuple[dict[str, Answer], Identities]
) -> None:
    answer = replayed[0][exchange.id]
    assert answer.status == exchange.status, answer.body
    assert _without_differences(exchange, answer.body) == _without_differences(exchange, exchange.body)


def test_versions_grow_where_those_of_the_real_server_grow(
    replayed: tuple[dict[str, Answer], Identities],
) -> None:
    pairs = sorted(set(replayed[1].object_versions))
    for (recorded, ours), (later_recorded, later_ours) in itertools.pairwise(pairs):
        assert (recorded < later_recorded) == (ours < later_ours), (
            recorded,
            ours,
            later_recorded,
            later_ours,
        )


def test_every_documented_difference_still_exists(replayed: tuple[dict[str, Answer], Identities]) -> None:
    for difference in DIFFERENCES:
        for step in difference.steps:
            exchange = next(one for one in EXCHANGES if (one.file, one.index) == (difference.file, step))
            assert comparable(replayed[0][exchange.id].body) != comparable(exchange.body), difference.reason


def _without_differences(exchange: Exchange, body: Any) -> Any:
    shown = comparable(body)
    for difference in DIFFERENCES:
        if difference.file == exchange.file and exchange.index in difference.steps:
            for path in difference.paths:
                _remove(shown, path.split("/"))
    return shown


def _remove(value: Any, path: list[str]) -> None:
    """Remove a `/`-separated path; `*` stands for every item of a list, `key=value` for the items that match."""
    head, rest = path[0], path[1:]
    if isinstance(value, list):
        wanted, _, text = head.partition("=")
        for item in list(value):
            if head == "*" or (text and isinstance(item, dict) and str(item.get(wanted)) == text):
                if rest:
                    _remove(item, rest)
                else:
                    value.remove(item)
    elif isinstance(value, dict) and head in value:
        if rest:
            _remove(value[head], rest)
        else:
            del value[head]

"""What breaks, and that the service and the operator go on."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest
from tests.e2e.cluster import (
    Cluster,
    Namespace,
    eventually,
    kill_pod,
    lease_holder,
    local_cluster,
    pd_service,
    steady_load,
)
from tests.e2e.test_serving import ask
from tests.ports import free_port

HANDOVER_ON_SIGTERM_SECONDS = 5
HANDOVER_ON_SIGKILL_SECONDS = 20


@pytest.mark.parametrize("role", ["decode", "prefill", "gateway"])
async def test_a_killed_pod_costs_one_substitute_and_service_continues(
    namespace: Namespace, role: str
) -> None:
    namespace.apply(pd_service(prefill={"replicas": 2}, decode={"replicas": 2}, gateway={"replicas": 2}))
    await asyncio.to_thread(namespace.wait_settled)
    before = _restarts_by_pod(namespace)
    assert set(before.values()) == {0}
    victim = namespace.pods(role)[0]

    kill_pod(victim)
    after = before | {victim["metadata"]["uid"]: 1}
    await asyncio.to_thread(eventually, lambda: _restarts_by_pod(namespace) == after)
    assert await asyncio.to_thread(eventually, lambda: _answers(namespace))
    await asyncio.to_thread(namespace.wait_settled)

    assert _restarts_by_pod(namespace) == after, "its container restarts once where it was, and no other does"
    assert await ask(namespace)


def _answers(namespace: Namespace) -> bool:
    try:
        return bool(asyncio.run(ask(namespace)))
    except Exception:  # noqa: BLE001  (whatever a client sees while a pod is down; it asks again)
        return False


def _restarts_by_pod(namespace: Namespace) -> dict[str, int]:
    return {
        pod["metadata"]["uid"]: sum(one["restartCount"] for one in pod["status"].get("containerStatuses", ()))
        for pod in namespace.pods()
    }


async def test_a_decode_that_dies_under_load_breaks_only_the_streams_it_carried(namespace: Namespace) -> None:
    namespace.apply(pd_service(decode={"replicas": 2}))
    await asyncio.to_thread(namespace.wait_settled)
    async with steady_load(lambda: ask(namespace)) as outcomes:
        await asyncio.to_thread(eventually, lambda: len(outcomes) >= 3)
        kill_pod(namespace.pods("decode")[0])
        reached = len(outcomes)
        await asyncio.to_thread(namespace.wait_settled)
        await asyncio.to_thread(eventually, lambda: len(outcomes) >= reached + 6)
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(failures) <= 3, "at most the three clients' running requests"
    assert not isinstance(outcomes[-1], BaseException)


@pytest.mark.parametrize(
    ("sent", "within"),
    [
        pytest.param(signal.SIGTERM, HANDOVER_ON_SIGTERM_SECONDS, id="an ordinary stop"),
        pytest.param(signal.SIGKILL, HANDOVER_ON_SIGKILL_SECONDS, id="a crash"),
    ],
)
def test_of_two_operators_one_acts_and_the_other_takes_over(
    own_cluster: Cluster, empty_namespace: Namespace, sent: signal.Signals, within: int
) -> None:
    first, second = own_cluster.operator("first").start(), own_cluster.operator("second")
    try:
        eventually(lambda: lease_holder(own_cluster).startswith("first"), first)
        second.start()
        empty_namespace.apply(pd_service())
        empty_namespace.wait_ready()
        eventually(lambda: "standing by" in second.tail(), second)
        assert lease_holder(own_cluster).startswith("first")

        first.stop(sent)
        died = time.monotonic()
        eventually(lambda: lease_holder(own_cluster).startswith("second"), second)
        assert time.monotonic() - died < within, (
            "the promise of docs/failure-modes.md, not a measure of speed"
        )
        empty_namespace.kubectl("scale", "pds", "chat", "--replicas=2")
        assert empty_namespace.wait_settled()["status"]["readyGroups"] == 2
        assert len(empty_namespace.pods("decode")) == 2
    finally:
        for process in (first, second):
            if process.is_running:
                process.stop()


def test_an_operator_killed_in_mid_reconcile_resumes_without_duplicates_or_orphans(
    own_cluster: Cluster, empty_namespace: Namespace
) -> None:
    services, pods_each = 24, 7
    # No node fits them: what is made and what is not can be counted at leisure.
    impossible = {"template": None, "resources": {"requests": {"cpu": "10000"}}}
    for index in range(services):
        roles = dict.fromkeys(("prefill", "decode", "gateway"), impossible)
        empty_namespace.apply(pd_service(f"chat{index}", groups=3, **roles))
    operator = own_cluster.operator("mortal").start()
    try:
        for _ in range(2):
            before = len(empty_namespace.get("pods")["items"])
            eventually(lambda before=before: len(empty_namespace.get("pods")["items"]) > before, operator)
            operator.stop(signal.SIGKILL)
            made = len(empty_namespace.get("pods")["items"])
            assert before < made < services * pods_each, "the kill has to come in the middle"
            operator.start()
        eventually(lambda: len(empty_namespace.get("pods")["items"]) == services * pods_each, operator)
        eventually(
            lambda: all(_reports(x, "Unschedulable") for x in empty_namespace.get("pds")["items"]), operator
        )
        pods = empty_namespace.get("pods")["items"]
        assert len(pods) == services * pods_each
        uids = {x["metadata"]["uid"] for x in empty_namespace.get("pds")["items"]}
        assert {pod["metadata"]["ownerReferences"][0]["uid"] for pod in pods} == uids
    finally:
        operator.stop()


def _reports(service: dict[str, Any], reason: str) -> bool:
    return any(c["reason"] == reason for c in service.get("status", {}).get("conditions", ()))


def test_the_api_server_restarts_and_nothing_is_lost(tmp_path: Any) -> None:
    port = str(free_port())
    data = ("--data", str(tmp_path / "data"), "--port", port)
    with local_cluster(tmp_path, *data) as cluster:
        operator = cluster.operator("patient").start()
        cluster.kubectl("create", "namespace", "kept")
        namespace = Namespace(cluster, "kept")
        namespace.apply(pd_service())
        namespace.wait_settled()
    try:
        with local_cluster(tmp_path, *data) as cluster:
            namespace = Namespace(cluster, "kept")
            namespace.wait_settled()
            namespace.kubectl("scale", "pds", "chat", "--replicas=2")
            assert namespace.wait_settled()["status"]["readyGroups"] == 2
            assert operator.is_running
            operator.stop()
    finally:
        if operator.is_running:
            operator.stop()

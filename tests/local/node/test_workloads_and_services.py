"""Deployments, Jobs, endpoints and the Service proxy, with real processes behind them."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import aiohttp
import pytest

from tidewheel.api.manifest import DEPLOYMENTS, PDBS, PODS, REPLICA_SETS, SERVICES
from tidewheel.local.workloads.endpoints import ENDPOINT_SLICES, ENDPOINTS
from tidewheel.local.workloads.jobs import JOBS

from .world import PATIENCE_SECONDS, condition, pod, python, shell, until, until_event

NAME_SERVER = (
    "import os, http.server as h\n"
    "class H(h.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers(); self.wfile.write(os.environ['NAME'].encode())\n"
    "    def log_message(self, *a): pass\n"
    "h.HTTPServer((os.environ['IP'], 8080), H).serve_forever()"
)
ENV = [
    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
]
PROBE = {"tcpSocket": {"port": "http"}, "periodSeconds": 1}
PORTS = [{"name": "http", "containerPort": 8080}]


def server(**more) -> dict:
    return python(NAME_SERVER, env=ENV, ports=PORTS, readinessProbe=PROBE, **more)


def service(name: str, **spec) -> dict:
    body = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": "http"}], **spec}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": body,
    }


def deployment(name: str, *, replicas: int = 2, version: str = "1") -> dict:
    template = pod(
        name,
        shell(f"VERSION={version}; trap 'exit 0' TERM; while :; do sleep 0.1; done"),
        labels={"app": name},
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": template["spec"]},
        },
    }


def is_rolled_out(found: dict, replicas: int) -> bool:
    """What `kubectl rollout status` asks."""
    status = found.get("status") or {}
    return (
        status.get("observedGeneration", 0) >= found["metadata"]["generation"]
        and status.get("updatedReplicas")
        == status.get("replicas")
        == status.get("availableReplicas")
        == replicas
    )


async def get(address: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}/") as response:
        return await response.text()


async def test_a_deployment_rolls_out_updates_scales_and_remembers(api):
    await api.create(DEPLOYMENTS, deployment("web"))
    first = await until(api, DEPLOYMENTS, "web", lambda d: is_rolled_out(d, 2))
    assert condition(first, "Available")["status"] == "True"
    assert condition(first, "Progressing")["reason"] == "NewReplicaSetAvailable"

    await api.replace(DEPLOYMENTS, deployment("web", version="2"))
    second = await until(api, DEPLOYMENTS, "web", lambda d: is_rolled_out(d, 2) and _revision(d) == "2")
    sets = {_revision(s): s["spec"]["replicas"] for s in (await api.list(REPLICA_SETS, "default")).items}
    assert sets == {"1": 0, "2": 2}
    assert second["metadata"]["generation"] == 2

    await api.replace(DEPLOYMENTS, deployment("web", version="1", replicas=1))
    await until(api, DEPLOYMENTS, "web", lambda d: is_rolled_out(d, 1) and _revision(d) == "3")
    assert len((await api.list(REPLICA_SETS, "default")).items) == 2


async def test_a_deployment_without_its_pods_is_not_available(api):
    body = deployment("stuck")
    body["spec"]["template"]["spec"]["nodeSelector"] = {"no": "where"}
    body["spec"]["progressDeadlineSeconds"] = 1
    await api.create(DEPLOYMENTS, body)

    found = await until(
        api, DEPLOYMENTS, "stuck", lambda d: condition(d, "Available").get("status") == "False"
    )
    assert found["status"]["unavailableReplicas"] == 2

    await until(
        api,
        DEPLOYMENTS,
        "stuck",
        lambda d: condition(d, "Progressing").get("reason") == "ProgressDeadlineExceeded",
    )


async def test_a_replica_that_dies_is_replaced(api):
    await api.create(DEPLOYMENTS, deployment("web", replicas=1))
    await until(api, DEPLOYMENTS, "web", lambda d: is_rolled_out(d, 1))
    [before] = (await api.list(PODS, "default")).items

    await api.delete(PODS, before["metadata"]["name"], "default")

    await until(api, DEPLOYMENTS, "web", lambda d: not is_rolled_out(d, 1))
    await until(api, DEPLOYMENTS, "web", lambda d: is_rolled_out(d, 1))


def _revision(found: dict) -> str:
    return (found["metadata"].get("annotations") or {}).get("deployment.kubernetes.io/revision", "")


def job(name: str, script: str, **spec) -> dict:
    template = {"spec": pod(name, shell(script), once=True)["spec"]}
    metadata = {"name": name, "namespace": "default"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {"template": template, **spec},
    }


async def test_a_job_tries_again_and_completes(api, tmp_path):
    script = f"if test -e {tmp_path}/x; then exit 0; fi; touch {tmp_path}/x; exit 1"
    await api.create(JOBS, job("second-time", script))

    found = await until(api, JOBS, "second-time", lambda j: condition(j, "Complete").get("status") == "True")

    assert (found["status"]["succeeded"], found["status"]["failed"]) == (1, 1)
    assert "completionTime" in found["status"]


async def test_a_job_gives_up_at_its_limit(api):
    await api.create(JOBS, job("hopeless", "exit 1", backoffLimit=1))

    found = await until(api, JOBS, "hopeless", lambda j: condition(j, "Failed").get("status") == "True")

    assert (found["status"]["failed"], condition(found, "Failed")["reason"]) == (2, "BackoffLimitExceeded")


async def test_a_service_leads_to_its_ready_pods_in_turn(api):
    await api.create(SERVICES, service("web"))
    for number in range(2):
        await api.create(PODS, pod(f"web-{number}", server(), labels={"app": "web"}))
    unready = pod(
        "web-2", server() | {"readinessProbe": {"exec": {"command": ["false"]}}}, labels={"app": "web"}
    )
    await api.create(PODS, unready)
    await _until_endpoints(api, "web", 2)
    address = (await api.get(SERVICES, "web", "default"))["spec"]["clusterIP"]

    answers = [await get(address) for _ in range(6)]

    assert sorted(answers) == ["web-0"] * 3 + ["web-1"] * 3
    await until(api, ENDPOINTS, "web", lambda e: len(e["subsets"][0].get("addresses", [])) == 2)


async def test_a_node_port_is_reached_on_loopback(api):
    with _free_node_port() as free:
        number = free.getsockname()[1]
    ports = [{"port": 80, "targetPort": "http", "nodePort": number}]
    await api.create(SERVICES, service("web", type="NodePort", ports=ports))
    await api.create(PODS, pod("web-0", server(), labels={"app": "web"}))
    await _until_endpoints(api, "web", 1)

    assert await get(f"127.0.0.1:{number}") == "web-0"


async def test_a_service_without_endpoints_refuses_and_a_dead_endpoint_is_passed_over(api):
    made = await api.create(SERVICES, service("web"))
    address = (made["spec"]["clusterIP"], 80)
    await _until_listening(address)
    with pytest.raises(ConnectionError):
        await _read_all(address)
    await api.create(PODS, pod("web-0", server(), labels={"app": "web"}))
    # Ready, but nothing listens there.
    await api.create(PODS, pod("web-1", shell("sleep 100", ports=PORTS), labels={"app": "web"}))
    await _until_endpoints(api, "web", 2)

    assert {await get(address[0]) for _ in range(4)} == {"web-0"}


async def test_a_half_closed_connection_still_gets_its_answer(api):
    echo = (
        "import os, socket\n"
        "s = socket.create_server((os.environ['IP'], 8080))\n"
        "while True:\n"
        "    c, _ = s.accept()\n"
        "    got = b''\n"
        "    while chunk := c.recv(65536): got += chunk\n"
        "    c.sendall(got[::-1]); c.close()"
    )
    body = pod(
        "echo-0",
        python(echo, env=ENV, ports=PORTS, readinessProbe={"exec": {"command": ["true"]}}),
        labels={"app": "echo"},
    )
    made = await api.create(SERVICES, service("echo"))
    await api.create(PODS, body)
    await _until_endpoints(api, "echo", 1)
    sent = bytes(range(256)) * 4096

    reader, writer = await _connected((made["spec"]["clusterIP"], 80))
    writer.write(sent)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(-1), 20)
    writer.close()

    assert answer == sent[::-1]


async def test_a_port_that_is_taken_is_told_about_the_service(api):
    with _free_node_port() as taken:
        number = taken.getsockname()[1]
        await api.create(SERVICES, service("busy", type="NodePort", ports=[{"port": 80, "nodePort": number}]))

        event = await until_event(api, "busy", "PortTaken")

    assert f"127.0.0.1:{number}" in event["message"]


async def test_a_budget_says_how_many_pods_may_go(api):
    body = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "two", "namespace": "default"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    }
    await api.create(PDBS, body)
    for number in range(2):
        await api.create(PODS, pod(f"web-{number}", shell("sleep 100"), labels={"app": "web"}))

    found = await until(api, PDBS, "two", lambda b: b["status"].get("currentHealthy") == 2)

    assert found["status"]["disruptionsAllowed"] == 1


def _free_node_port() -> socket.socket:
    """A bound port of the range; other clusters of this machine may hold some."""
    for number in range(32000, 32768):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", number))
    raise AssertionError("no node port is free")


async def _until_endpoints(api, name: str, ready: int) -> None:
    def enough(found: dict) -> bool:
        return sum(e["conditions"]["ready"] for e in found.get("endpoints") or []) == ready

    await until(api, ENDPOINT_SLICES, f"{name}-local", enough)


async def _connected(address: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.wait_for(asyncio.open_connection(*address), PATIENCE_SECONDS)


async def _until_listening(address: tuple[str, int]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection(*address)
                writer.close()
                return


async def _read_all(address: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    try:
        got = await asyncio.wait_for(reader.read(-1), PATIENCE_SECONDS)
        if not got:
            raise ConnectionError("closed without an answer")
        return got
    finally:
        writer.close()

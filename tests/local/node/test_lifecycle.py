"""From start to end: init containers, probes, restarts, grace, memory, and what remains."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import psutil
import pytest

from tidewheel.api.manifest import NODES, PODS
from tidewheel.local.cluster import local_cluster, node_agent
from tidewheel.local.node import AgentOptions
from tidewheel.local.nodes import default_nodes

from .world import (
    EVENTS,
    condition,
    container,
    is_ready,
    phase,
    pod,
    python,
    run_once,
    shell,
    until,
    until_event,
    until_gone,
    waits_for,
)

STAY = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
STUBBORN = "trap '' TERM; touch armed; while :; do sleep 0.1; done"
ARMED = {"exec": {"command": ["test", "-e", "armed"]}, "periodSeconds": 1}


def processes_of(found: dict) -> list[psutil.Process]:
    mark = found["metadata"]["uid"]
    marked = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TIDEWHEEL_POD_UID") == mark and process.status() != "zombie":
                marked.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return marked


async def test_init_containers_run_one_after_another_before_the_others(api, tmp_path):
    volumes = [{"name": "v", "hostPath": {"path": str(tmp_path)}}]
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    inits = [shell(f"echo {name} >> /v/order", name=name, **mount) for name in ("first", "second")]
    main = shell("echo main >> /v/order", **mount)

    await run_once(api, pod("ordered", main, once=True, initContainers=inits, volumes=volumes))

    assert (tmp_path / "order").read_text().split() == ["first", "second", "main"]
    found = await api.get(PODS, "ordered", "default")
    assert condition(found, "Initialized")["status"] == "True"


async def test_a_failed_init_container_fails_a_pod_that_never_restarts(api):
    failing = shell("exit 3", name="check")
    await api.create(PODS, pod("blocked", shell("true"), once=True, initContainers=[failing]))

    found = await until(api, PODS, "blocked", lambda p: phase(p) == "Failed")

    assert container(found, "check")["state"]["terminated"]["exitCode"] == 3
    assert container(found)["state"]["waiting"]["reason"] == "PodInitializing"


async def test_a_sidecar_starts_before_the_main_container_and_ends_after_it(api, tmp_path):
    volumes = [{"name": "v", "hostPath": {"path": str(tmp_path)}}]
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    script = "echo up >> /v/story; trap 'echo down >> /v/story; exit 0' TERM; touch armed; while :; do sleep 0.05; done"
    sidecar = shell(script, name="side", restartPolicy="Always", startupProbe=ARMED, **mount)
    main = shell("echo main >> /v/story", **mount)

    ended = await run_once(api, pod("beside", main, once=True, initContainers=[sidecar], volumes=volumes))

    assert ended["exitCode"] == 0
    await until(api, PODS, "beside", lambda p: "terminated" in container(p, "side")["state"])
    assert (tmp_path / "story").read_text().split() == ["up", "main", "down"]


async def test_the_address_is_known_before_the_container_runs(api):
    ended = await run_once(
        api,
        pod(
            "addressed",
            python(
                "import os, socket; s = socket.socket(); s.bind((os.environ['IP'], 8000));"
                "open(os.environ['TIDEWHEEL_TERMINATION_LOG'], 'w').write(s.getsockname()[0])",
                env=[{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            ),
            once=True,
        ),
    )

    assert ended["message"] == (await api.get(PODS, "addressed", "default"))["status"]["podIP"]


async def test_readiness_follows_its_probe_both_ways(api, tmp_path):
    probe = {
        "exec": {"command": ["test", "-e", str(tmp_path / "ready")]},
        "periodSeconds": 1,
        "failureThreshold": 1,
    }
    await api.create(PODS, pod("gated", shell(STAY, readinessProbe=probe)))
    found = await until(api, PODS, "gated", lambda p: container(p).get("started") is True)
    assert not is_ready(found)
    assert condition(found, "Ready")["message"] == "containers with unready status: [main]"

    (tmp_path / "ready").touch()
    await until(api, PODS, "gated", is_ready)
    (tmp_path / "ready").unlink()

    await until(api, PODS, "gated", lambda p: condition(p, "Ready").get("status") == "False")


async def test_http_probes_use_named_ports_and_tell_what_they_saw(api):
    serve = (
        "import os, http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200 if self.path == '/ok' else 503); self.end_headers(); self.wfile.write(b'busy')\n"
        "h.HTTPServer((os.environ['IP'], 8123), H).serve_forever()"
    )
    env = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    ports = [{"name": "web", "containerPort": 8123}]

    def probing(path: str) -> dict:
        probe = {"httpGet": {"path": path, "port": "web"}, "periodSeconds": 1}
        return python(serve, env=env, ports=ports, readinessProbe=probe)

    await api.create(PODS, pod("healthy", probing("/ok")))
    await api.create(PODS, pod("busy", probing("/busy")))

    await until(api, PODS, "healthy", is_ready)
    while True:
        event = await until_event(api, "busy", "Unhealthy")
        if "statuscode" in event["message"]:
            break
        await api.delete(EVENTS, event["metadata"]["name"], "default")
    assert event["message"] == "Readiness probe failed: HTTP probe failed with statuscode: 503: busy"


async def test_a_failed_liveness_probe_restarts_the_container(api, tmp_path):
    once = tmp_path / "was-here"
    script = f"if test -e {once}; then touch alive; fi; touch {once}; {STAY}"
    probe = {"exec": {"command": ["test", "-e", "alive"]}, "periodSeconds": 1, "failureThreshold": 1}
    await api.create(PODS, pod("revived", shell(script, livenessProbe=probe)))

    found = await until(api, PODS, "revived", lambda p: container(p).get("restartCount") == 1 and is_ready(p))

    assert container(found)["lastState"]["terminated"]["exitCode"] == 0
    event = await until_event(api, "revived", "Killing")
    assert event["message"] == "Container main failed liveness probe, will be restarted"


async def test_liveness_waits_for_startup(api):
    never = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    slow = {"exec": {"command": ["test", "-e", "armed"]}, "periodSeconds": 1, "failureThreshold": 30}
    script = f"sleep 1.5; touch armed; {STAY}"
    await api.create(PODS, pod("slow", shell(script, startupProbe=slow, livenessProbe=never)))

    found = await until(api, PODS, "slow", lambda p: container(p).get("started") is True)

    assert container(found)["restartCount"] == 0
    await until(api, PODS, "slow", lambda p: container(p).get("restartCount", 0) >= 1)


async def test_a_crashing_container_backs_off_and_keeps_its_history(api):
    await api.create(PODS, pod("crashes", shell("echo bad > /dev/termination-log; exit 7")))

    found = await until(
        api, PODS, "crashes", lambda p: waits_for("CrashLoopBackOff")(p) and container(p)["restartCount"] >= 2
    )

    last = container(found)["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"], last["message"]) == (7, "Error", "bad")
    assert phase(found) == "Running"
    assert "restarting failed container=main" in container(found)["state"]["waiting"]["message"]
    assert "Back-off restarting" in (await until_event(api, "crashes", "BackOff"))["message"]


@pytest.mark.parametrize(
    ("policy", "script", "want"),
    [("Never", "exit 1", "Failed"), ("OnFailure", "exit 0", "Succeeded"), ("Never", "exit 0", "Succeeded")],
)
async def test_the_restart_policy_decides_the_phase(api, policy, script, want):
    await api.create(PODS, pod("ends", shell(script), restartPolicy=policy))

    found = await until(api, PODS, "ends", lambda p: phase(p) == want)

    assert container(found)["restartCount"] == 0
    assert condition(found, "Ready")["status"] == "False"


async def test_on_failure_restarts_until_it_succeeds(api, tmp_path):
    script = f"if test -e {tmp_path}/again; then exit 0; fi; touch {tmp_path}/again; exit 1"
    await api.create(PODS, pod("second", shell(script), restartPolicy="OnFailure"))

    found = await until(api, PODS, "second", lambda p: phase(p) == "Succeeded")

    assert container(found)["restartCount"] == 1


async def test_a_deleted_pod_may_end_by_itself_within_its_grace(api, tmp_path):
    script = f"trap 'echo bye > {tmp_path}/last; exit 0' TERM; touch armed; while :; do sleep 0.05; done"
    await api.create(
        PODS, pod("polite", shell(script, readinessProbe=ARMED), terminationGracePeriodSeconds=3600)
    )
    await until(api, PODS, "polite", is_ready)

    await api.delete(PODS, "polite", "default")
    await until_gone(api, "polite")  # long before its grace is over

    assert (tmp_path / "last").read_text() == "bye\n"


async def test_what_ignores_sigterm_is_killed_with_all_it_started(api):
    script = f"(setsid sleep 1000 &) ; sleep 1000 & {STUBBORN}"
    await api.create(PODS, pod("stubborn", shell(script.replace("setsid ", ""), readinessProbe=ARMED)))
    found = await until(api, PODS, "stubborn", is_ready)
    assert len(processes_of(found)) >= 3

    await api.delete(PODS, "stubborn", "default")
    await until_gone(api, "stubborn")

    assert processes_of(found) == []


async def test_pre_stop_comes_before_sigterm(api, tmp_path):
    script = f"trap 'echo term >> {tmp_path}/story; exit 0' TERM; touch armed; while :; do sleep 0.05; done"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", f"sleep 0.2; echo hook >> {tmp_path}/story"]}}}
    await api.create(
        PODS,
        pod("hooked", shell(script, lifecycle=hook, readinessProbe=ARMED), terminationGracePeriodSeconds=10),
    )
    await until(api, PODS, "hooked", is_ready)

    await api.delete(PODS, "hooked", "default")
    await until_gone(api, "hooked")

    assert (tmp_path / "story").read_text().split() == ["hook", "term"]


async def test_a_forced_deletion_ends_the_processes_at_once(api):
    await api.create(
        PODS, pod("forced", shell(STUBBORN, readinessProbe=ARMED), terminationGracePeriodSeconds=300)
    )
    found = await until(api, PODS, "forced", is_ready)
    gone = [asyncio.to_thread(process.wait, 20) for process in processes_of(found)]

    await api.delete(PODS, "forced", "default", grace_seconds=0)

    assert gone
    await asyncio.gather(*gone)


async def test_a_container_above_its_memory_limit_is_killed_and_says_so(api):
    hog = "x = bytearray(200 * 1024 * 1024); import time; time.sleep(60)"
    limits = {"limits": {"memory": "64Mi"}}

    ended = await run_once(api, pod("hog", python(hog, resources=limits), once=True))

    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


async def test_the_deadline_of_a_pod_ends_it(api):
    await api.create(PODS, pod("late", shell(STAY), activeDeadlineSeconds=1, restartPolicy="Never"))

    found = await until(api, PODS, "late", lambda p: phase(p) == "Failed")

    assert found["status"]["reason"] == "DeadlineExceeded"


async def test_processes_killed_from_outside_are_started_again(api):
    await api.create(PODS, pod("hit", shell(STAY)))
    found = await until(api, PODS, "hit", is_ready)

    for process in processes_of(found):
        os.kill(process.pid, signal.SIGKILL)

    found = await until(api, PODS, "hit", lambda p: container(p).get("restartCount") == 1 and is_ready(p))
    last = container(found)["lastState"]["terminated"]
    assert (last["exitCode"], last["signal"], last["reason"]) == (137, 9, "Error")


async def test_a_stopped_agent_leaves_no_process_and_a_new_one_takes_the_pods_up(api, cluster, tmp_path):
    options = AgentOptions(nodes_file=default_nodes(), data=tmp_path / "agent", stop_grace_seconds=1.0)
    body = pod("keeps", shell(STAY), nodeName="local-1")
    async with node_agent(api, cluster.url, options):
        await api.create(PODS, body)
        found = await until(api, PODS, "keeps", is_ready)
    assert processes_of(found) == []
    node = await api.get(NODES, "local-1")
    assert condition(node, "Ready")["reason"] == "NodeAgentStopped"
    await until(api, PODS, "keeps", lambda p: not is_ready(p))

    async with node_agent(api, cluster.url, options):
        found = await until(api, PODS, "keeps", lambda p: is_ready(p) and container(p)["restartCount"] == 1)

        assert "terminated" in container(found)["lastState"]
        await until(api, NODES, "local-1", is_ready, namespace=None)


async def test_a_job_cut_short_by_its_agent_has_failed_not_succeeded(api, cluster, tmp_path):
    options = AgentOptions(nodes_file=default_nodes(), data=tmp_path / "agent", stop_grace_seconds=1.0)
    async with node_agent(api, cluster.url, options):
        await api.create(PODS, pod("cut", shell(STAY), once=True, nodeName="local-1"))
        await until(api, PODS, "cut", is_ready)

    found = await api.get(PODS, "cut", "default")
    assert (phase(found), found["status"]["reason"]) == ("Failed", "NodeShutdown")


async def test_no_pod_outlives_an_agent_that_is_killed_and_the_next_one_starts_it_again(
    api, cluster, tmp_path
):
    arguments = (
        "-m",
        "tidewheel.cli",
        "node",
        "--kubeconfig",
        str(cluster.kubeconfig),
        "--data",
        str(tmp_path),
    )
    agent = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    try:
        await until(api, NODES, "local-1", is_ready, namespace=None)
        await api.create(PODS, pod("orphan", shell(f"sleep 1000 & {STAY}"), nodeName="local-1"))
        found = await until(api, PODS, "orphan", is_ready)
        [leader] = [process for process in processes_of(found) if process.ppid() == agent.pid]
    finally:
        agent.kill()
        await agent.wait()
    await asyncio.to_thread(leader.wait, 10)
    left = processes_of(found)

    async with node_agent(api, cluster.url, AgentOptions(nodes_file=default_nodes(), data=tmp_path)):
        found = await until(api, PODS, "orphan", lambda p: container(p)["restartCount"] == 1 and is_ready(p))

        assert container(found)["lastState"]["terminated"]["reason"] == "ContainerStatusUnknown"
        # What the killed container had started is gone too.
        assert not any(process.is_running() and process.status() != "zombie" for process in left)


async def test_who_ran_an_agent_is_no_parent_of_orphans_after_it():
    def is_adopted() -> bool:
        told = subprocess.run(
            ["sh", "-c", "sleep 1000 > /dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
        )
        orphan = psutil.Process(int(told.stdout))
        parent = orphan.ppid()
        orphan.kill()
        if parent == os.getpid():
            os.waitpid(orphan.pid, 0)
        return parent == os.getpid()

    async with local_cluster(with_crds=False):
        assert await asyncio.to_thread(is_adopted)
    assert not await asyncio.to_thread(is_adopted)

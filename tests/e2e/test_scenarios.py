"""Groups by scenario, ratios that change, scalers and faults, with the real kubectl and real pods."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, RateLimitError
from tests.e2e.cluster import Namespace, eventually, kill_pod, pd_service, steady_load, tidewheel

CODE: dict[str, Any] = {
    "name": "code",
    "match": {"modelAliases": ["coder"]},
    "groups": {"replicas": 1, "whenDown": "Wait"},
    "limits": {"maxInFlight": 64},
}


async def ask(namespace: Namespace, model: str = "stand-in") -> str:
    async with AsyncOpenAI(
        base_url=f"{namespace.url()}/v1", api_key="none", max_retries=0, timeout=60
    ) as openai:
        answer = await openai.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "What is up?"}], max_tokens=8
        )
    return answer.choices[0].message.content or ""


def patch(namespace: Namespace, **spec: Any) -> None:
    namespace.kubectl("patch", "pds", "chat", "--type=merge", "-p", json.dumps({"spec": spec}))


def uids(namespace: Namespace, role: str | None = None) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in namespace.pods(role)}


def scenario_of(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"].get("tidewheel.dev/scenario", "default"))


def answered(pod: dict[str, Any]) -> float:
    """Tokens that a decode has written."""
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8000/metrics", timeout=5) as answer:
        text = answer.read().decode()
    samples = re.findall(r"^vllm:generation_tokens_total(?:{.*})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, samples))


async def test_each_scenario_is_served_by_its_own_groups(namespace: Namespace) -> None:
    namespace.apply(pd_service(scenarios=[CODE]))
    service = namespace.wait_settled()
    assert [(one["name"], one["readyGroups"], one["ratio"]) for one in service["status"]["scenarios"]] == [
        ("default", 1, "1:1"),
        ("code", 1, "1:1"),
    ]
    decodes = {scenario_of(pod): pod for pod in namespace.pods("decode")}
    assert set(decodes) == {"default", "code"}

    for _ in range(4):
        assert await ask(namespace, "coder")
    assert answered(decodes["default"]) == 0
    coded = answered(decodes["code"])
    assert coded > 0
    for _ in range(4):
        assert await ask(namespace)
    assert answered(decodes["default"]) > 0
    assert answered(decodes["code"]) == coded


async def test_a_scenario_has_no_more_requests_than_it_may(namespace: Namespace) -> None:
    limited = {"name": "code", "match": CODE["match"], "limits": {"maxInFlight": 1}}
    namespace.apply(pd_service(scenarios=[limited]))
    namespace.wait_settled()
    outcomes = await asyncio.gather(
        *(ask(namespace, "coder") for _ in range(40)),
        *(ask(namespace) for _ in range(4)),
        return_exceptions=True,
    )
    refused = [one for one in outcomes[:40] if isinstance(one, RateLimitError)]
    assert refused
    assert all(one.code == "scenario_limit" for one in refused)
    assert not [one for one in outcomes[40:] if isinstance(one, BaseException)], "others are not affected"


async def test_a_ratio_changes_up_and_back_by_new_pods_without_a_failed_request(namespace: Namespace) -> None:
    namespace.apply(pd_service(decode={"replicas": 2}, rollout={"roleFlips": "Disabled"}))
    namespace.wait_settled()
    first = uids(namespace)
    async with steady_load(lambda: ask(namespace)) as outcomes:
        patch(namespace, prefill={"replicas": 2}, decode={"replicas": 1})
        shifted = namespace.wait_settled()["status"]
        assert (shifted["ratio"], shifted["prefill"]["summary"], shifted["decode"]["summary"]) == (
            "2:1",
            "2/2",
            "1/1",
        )
        patch(namespace, prefill={"replicas": 1}, decode={"replicas": 2})
        back = namespace.wait_settled()["status"]
        assert back["ratio"] == "1:2"
        before = len(outcomes)
        while len(outcomes) < before + 5:
            await ask(namespace)
    assert [one for one in outcomes if isinstance(one, BaseException)] == []
    last = uids(namespace)
    kept = {name for name in first if last.get(name) == first[name]}
    assert len(kept) == 3, "gateway, prefill 0 and decode 0 were never touched"


async def test_a_scenario_is_combined_and_divided_again_without_a_failed_request(
    namespace: Namespace,
) -> None:
    def way(disaggregation: str, decode: int) -> list[dict[str, Any]]:
        return [CODE | {"groups": CODE["groups"] | {"disaggregation": disaggregation, "decode": decode}}]

    def found() -> dict[str, Any]:
        status = namespace.wait_settled()["status"]
        return next(one for one in status["scenarios"] if one["name"] == "code")

    namespace.apply(pd_service(scenarios=way("Always", 1)))
    namespace.wait_settled()
    first = uids(namespace)
    async with steady_load(lambda: ask(namespace, "coder")) as outcomes:
        patch(namespace, scenarios=way("Never", 2))
        combined = await asyncio.to_thread(found)
        assert (combined["ratio"], combined["prefill"]["summary"], combined["decode"]["summary"]) == (
            "0:2",
            "0/0",
            "2/2",
        )
        assert "disaggregation Never" in combined["reason"]
        before = len(outcomes)
        while len(outcomes) < before + 5:
            await ask(namespace, "coder")
        patch(namespace, scenarios=way("Always", 1))
        divided = await asyncio.to_thread(found)
        assert (divided["ratio"], divided["readyGroups"]) == ("1:1", 1)
        before = len(outcomes)
        while len(outcomes) < before + 5:
            await ask(namespace, "coder")
    assert [one for one in outcomes if isinstance(one, BaseException)] == []
    last = uids(namespace)
    gone = {name for name in first if last.get(name) != first[name]}
    assert [name[-9:] for name in gone] == ["prefill-0"], "nobody else was touched"


def test_a_killed_decode_that_is_deleted_costs_one_substitute_and_nobody_restarts(
    namespace: Namespace,
) -> None:
    namespace.apply(pd_service(decode={"replicas": 2}))
    namespace.wait_settled()
    first = uids(namespace)
    gone = namespace.pods("decode")[0]
    kill_pod(gone)
    namespace.kubectl("delete", "pod", gone["metadata"]["name"], "--wait=false")
    eventually(lambda: gone["metadata"]["name"] not in uids(namespace) and len(namespace.pods("decode")) == 2)
    namespace.wait_settled()
    last = uids(namespace)
    new = last.keys() - first.keys()
    assert new == {f"{gone['metadata']['name']}-1"}
    assert {name: last[name] for name in last.keys() - new} == {
        name: uid for name, uid in first.items() if name != gone["metadata"]["name"]
    }
    for pod in namespace.pods():
        restarts = [status["restartCount"] for status in pod["status"]["containerStatuses"]]
        assert restarts == [0], f"{pod['metadata']['name']} restarted"


def test_kubectl_scales_a_role_of_a_scenario(namespace: Namespace) -> None:
    namespace.apply(pd_service(scenarios=[CODE]))
    namespace.wait_settled()
    namespace.apply(
        {
            "apiVersion": "tidewheel.dev/v1alpha1",
            "kind": "PDServiceScaler",
            "metadata": {"name": "code-decode"},
            "spec": {"service": "chat", "scenario": "code", "role": "decode", "replicas": 1},
        }
    )
    namespace.kubectl("wait", "--for=condition=Active", "pdss/code-decode", "--timeout=60s")
    assert "scaled" in namespace.kubectl("scale", "pdss", "code-decode", "--replicas=2")
    eventually(lambda: namespace.get("pdss", "code-decode")["status"].get("readyReplicas") == 2)
    scaled = namespace.get("pods", "-l", namespace.get("pdss", "code-decode")["status"]["selector"])["items"]
    assert {scenario_of(pod) for pod in scaled} == {"code"}
    assert len(scaled) == 2
    header, row = namespace.kubectl("get", "pdss").splitlines()[:2]
    assert header.split() == [
        "NAME",
        "SERVICE",
        "SCENARIO",
        "ROLE",
        "DESIRED",
        "READY",
        "ACTIVE",
        "REASON",
        "AGE",
    ]
    assert row.split()[:8] == ["code-decode", "chat", "code", "decode", "2", "2", "True", "Scaled"]
    patch(namespace, scaling={"mode": "Auto"})
    told = eventually(
        lambda: next(
            (
                one
                for one in namespace.get("pdss", "code-decode")["status"]["conditions"]
                if one["status"] == "False"
            ),
            None,
        )
    )
    assert told["reason"] == "ScaledByOperator"
    eventually(lambda: len([pod for pod in namespace.pods("decode") if scenario_of(pod) == "code"]) == 1)


@pytest.mark.parametrize("field", ["service", "scenario", "role"])
def test_what_a_scaler_scales_cannot_be_changed(namespace: Namespace, field: str) -> None:
    other = {"service": "other", "scenario": "other", "role": "prefill"}
    manifest = {
        "apiVersion": "tidewheel.dev/v1alpha1",
        "kind": "PDServiceScaler",
        "metadata": {"name": "one"},
        "spec": {"service": "chat", "scenario": "code", "role": "decode", "replicas": 1},
    }
    namespace.apply(manifest)
    changed = {**manifest, "spec": manifest["spec"] | {field: other[field]}}
    with pytest.raises(Exception, match="cannot be changed"):
        namespace.apply(changed)


def test_a_plan_tells_what_the_operator_then_does(namespace: Namespace, tmp_path: Path) -> None:
    namespace.apply(pd_service())
    namespace.wait_settled()

    def planned(manifest: dict[str, Any]) -> dict[str, Any]:
        file = tmp_path / "service.yaml"
        file.write_text(json.dumps(manifest))
        done = subprocess.run(
            tidewheel("plan", "-f", str(file), "-n", namespace.name, "--json"),
            env={**os.environ, "KUBECONFIG": str(namespace.cluster.kubeconfig)},
            capture_output=True,
            text=True,
            check=True,
        )
        (told,) = json.loads(done.stdout)
        return dict(told)

    assert planned(pd_service())["changes"] == []
    told = planned(pd_service(decode={"replicas": 2}))
    (created,) = (line for line in told["changes"] if line.startswith("create Pod"))
    assert created.endswith("(decode)")
    assert len(namespace.pods("decode")) == 1, "a plan changes nothing"
    namespace.apply(pd_service(decode={"replicas": 2}))
    namespace.wait_settled()
    assert created.split()[2] in uids(namespace)


async def test_a_pod_on_a_sick_device_is_substituted_and_nobody_else_notices(
    namespace: Namespace, tmp_path: Path
) -> None:
    if not namespace.cluster.is_local:
        pytest.skip("the detector's file has to be on the node")
    service = pd_service(decode={"replicas": 2})
    (worker,) = service["spec"]["decode"]["template"]["spec"]["containers"]
    # Each pod's name stands for its device.
    told = {
        "TIDEWHEEL_DEVICE_HEALTH_FILE": "/etc/tidewheel/device-health/health.json",
        "TIDEWHEEL_DEVICES_VARIABLE": "POD_NAME",
    }
    mount = {"name": "device-health", "mountPath": "/etc/tidewheel/device-health"}
    env = [*worker["env"], *({"name": name, "value": value} for name, value in told.items())]
    service["spec"]["decode"]["template"] = {
        "spec": {
            "containers": [worker | {"env": env, "volumeMounts": [mount]}],
            "volumes": [{"name": "device-health", "hostPath": {"path": str(tmp_path)}}],
        }
    }
    namespace.apply(service)
    namespace.wait_settled()
    first = uids(namespace)
    sick = namespace.pods("decode")[0]["metadata"]["name"]
    async with steady_load(lambda: ask(namespace)) as outcomes:
        (tmp_path / "health.json").write_text(
            json.dumps({"devices": {sick: {"level": "Replace", "message": "ECC error"}}})
        )
        await asyncio.to_thread(eventually, lambda: f"{sick}-1" in uids(namespace))
        await asyncio.to_thread(namespace.wait_settled)
    assert [one for one in outcomes if isinstance(one, BaseException)] == []
    last = uids(namespace)
    assert {name: uid for name, uid in first.items() if name != sick}.items() <= last.items()
    assert last.keys() - first.keys() == {f"{sick}-1"}
    decisions = namespace.get("pds", "chat")["status"]["decisions"]
    assert any(one["reason"] == "DeviceUnhealthy" and "ECC error" in one["message"] for one in decisions)

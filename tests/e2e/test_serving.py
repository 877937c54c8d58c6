"""A PDService from `kubectl apply` to answers, changes and deletion."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest
import yaml
from openai import AsyncOpenAI, OpenAI
from tests.e2e.cluster import ROOT, Namespace, eventually, pd_service, steady_load


def client(namespace: Namespace, service: str = "chat") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{namespace.url(service)}/v1", api_key="none", max_retries=0, timeout=60)


def metric(url: str, name: str) -> float:
    """The sum of one Prometheus metric's samples at a worker."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


async def ask(namespace: Namespace, question: str = "What is up?", *, service: str = "chat") -> str:
    async with client(namespace, service) as openai:
        answer = await openai.chat.completions.create(
            model="stand-in", messages=[{"role": "user", "content": question}], max_tokens=8
        )
    return answer.choices[0].message.content or ""


@pytest.mark.timeout(400)
def test_the_example_answers_with_a_real_model_and_leaves_nothing_behind(namespace: Namespace) -> None:
    example = yaml.safe_load((ROOT / "examples/pdservice.yaml").read_text())
    name, model = example["metadata"]["name"], example["spec"]["model"]["name"]
    namespace.apply(example)
    namespace.wait_ready(name)

    openai = OpenAI(base_url=f"{namespace.url(name)}/v1", api_key="none")
    assert [served.id for served in openai.models.list()] == [model]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = openai.chat.completions.create(model=model, messages=question, max_tokens=32, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    streamed = openai.chat.completions.create(
        model=model, messages=question, max_tokens=32, temperature=0, stream=True
    )
    assert (
        "".join(c.choices[0].delta.content or "" for c in streamed if c.choices)
        == answer.choices[0].message.content
    )
    completion = openai.completions.create(
        model=model, prompt="The capital of France is", max_tokens=8, temperature=0
    )
    assert "Paris" in completion.choices[0].text

    decode = namespace.pods("decode", name)[0]["status"]["podIP"]
    assert metric(f"http://{decode}:8000", "tidewheel_kv_transfer_bytes_total") > 100_000

    namespace.kubectl("delete", "pds", name)
    assert eventually(
        lambda: (
            not namespace.get("pods,services,configmaps,pdb", "-l", f"tidewheel.dev/service={name}")["items"]
        )
    )


async def test_changing_replicas_and_resources_fails_no_request(namespace: Namespace) -> None:
    namespace.apply(pd_service())
    namespace.wait_settled()
    first = {pod["metadata"]["uid"] for pod in namespace.pods()}

    async with steady_load(lambda: ask(namespace)) as outcomes:
        namespace.kubectl(
            "patch", "pds", "chat", "--type=merge", "-p", json.dumps({"spec": {"decode": {"replicas": 2}}})
        )
        grown = namespace.wait_settled()
        assert grown["status"]["decode"]["summary"] == "2/2"
        assert first <= {pod["metadata"]["uid"] for pod in namespace.pods()}, (
            "growing must not touch what runs"
        )

        resources = {"spec": {"prefill": {"resources": {"requests": {"cpu": "11m", "memory": "33Mi"}}}}}
        namespace.kubectl("patch", "pds", "chat", "--type=merge", "-p", json.dumps(resources))
        rolled = namespace.wait_settled()
        assert rolled["status"]["revision"] != grown["status"]["revision"]

        namespace.kubectl(
            "patch", "pds", "chat", "--type=merge", "-p", json.dumps({"spec": {"decode": {"replicas": 1}}})
        )
        namespace.wait_settled()
        before = len(outcomes)
        while len(outcomes) < before + 3:
            await ask(namespace)

    assert [outcome for outcome in outcomes if isinstance(outcome, BaseException)] == []
    assert not first & {
        pod["metadata"]["uid"] for pod in namespace.pods("prefill") + namespace.pods("decode")
    }


def test_scale_adds_and_removes_whole_groups(namespace: Namespace) -> None:
    namespace.apply(pd_service())
    namespace.wait_settled()
    namespace.kubectl("scale", "pds", "chat", "--replicas=2")
    service = namespace.wait_settled()
    assert service["status"]["readyGroups"] == 2
    assert len({pod["metadata"]["labels"]["tidewheel.dev/group"] for pod in namespace.pods("decode")}) == 2
    namespace.kubectl("scale", "pds", "chat", "--replicas=1")
    namespace.wait_settled()
    assert eventually(lambda: len(namespace.pods("prefill")) == 1)


def test_suspend_removes_the_pods_and_resume_brings_them_back(namespace: Namespace) -> None:
    namespace.apply(pd_service())
    namespace.wait_settled()
    namespace.kubectl("patch", "pds", "chat", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    assert eventually(lambda: not namespace.pods())
    assert eventually(lambda: namespace.condition()["reason"] == "Suspended")
    namespace.kubectl("patch", "pds", "chat", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    namespace.wait_settled()


def test_every_change_is_among_the_last_decisions_with_its_reason(namespace: Namespace) -> None:
    namespace.apply(pd_service())
    namespace.wait_settled()
    decisions = namespace.get("pds", "chat")["status"]["decisions"]
    assert decisions
    assert all(decision["action"] and decision["reason"] and decision["message"] for decision in decisions)
    described = namespace.kubectl("describe", "pds", "chat")
    assert decisions[0]["reason"] in described


def test_someone_elses_edit_of_a_child_is_put_back(namespace: Namespace) -> None:
    namespace.apply(pd_service())
    namespace.wait_settled()
    port = '[{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]'
    namespace.kubectl("patch", "service", "chat", "--type=json", "-p", port)
    assert eventually(lambda: namespace.get("service", "chat")["spec"]["ports"][0]["port"] == 80)

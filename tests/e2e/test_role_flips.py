"""A group's ratio changes under load: a warm pod takes the other role, its process stays, and no request fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI
from tests.e2e.cluster import Namespace, pd_service, steady_load


def compute_pods(namespace: Namespace) -> dict[str, dict[str, Any]]:
    return {pod["metadata"]["uid"]: pod for role in ("prefill", "decode") for pod in namespace.pods(role)}


def restarts(pods: dict[str, dict[str, Any]]) -> int:
    return sum(
        status["restartCount"] for pod in pods.values() for status in pod["status"]["containerStatuses"]
    )


@pytest.mark.timeout(300)
async def test_a_ratio_changes_by_flips_and_no_pod_is_created_or_restarted(namespace: Namespace) -> None:
    namespace.apply(
        pd_service(prefill={"replicas": 1, "slots": 8}, decode={"replicas": 3, "slots": 12}, drainSeconds=30)
    )
    await asyncio.to_thread(namespace.wait_settled)
    before = compute_pods(namespace)
    client = AsyncOpenAI(base_url=f"{namespace.url()}/v1", api_key="none", max_retries=0, timeout=60)

    async def ask() -> str:
        answer = await client.chat.completions.create(
            model="stand-in", messages=[{"role": "user", "content": "Is the tide in?"}], max_tokens=200
        )
        return str(answer.choices[0].message.content)

    async with steady_load(ask) as outcomes:
        for prefill, decode in ((2, 2), (1, 3)):
            namespace.apply(
                pd_service(
                    prefill={"replicas": prefill, "slots": 8},
                    decode={"replicas": decode, "slots": 12},
                    drainSeconds=30,
                )
            )
            await asyncio.to_thread(namespace.wait_settled)
            after = compute_pods(namespace)
            assert after.keys() == before.keys(), "the pods stay who they are"
            assert restarts(after) == 0
            assert len(namespace.pods("prefill")) == prefill
            assert len(namespace.pods("decode")) == decode
    assert {str(outcome) for outcome in outcomes} == {"Is the tide in?"}
    status = namespace.get("pds", "chat")["status"]
    told = [one["message"] for one in status["decisions"] if one["action"] == "FlippedMember"]
    assert len(told) == 2
    assert all("its model stayed loaded" in message for message in told)
    await client.close()

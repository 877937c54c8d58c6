"""Boosts go round real pods: one scenario at a time has a decode more, and what that brought is recorded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI
from tests.e2e.cluster import Namespace, eventually, pd_service, steady_load

ALLOCATION = {
    "mode": "Auto",
    "policy": "RoundRobin",
    "slots": 1,
    "goodRequestsPerMinute": 60,
    "roundSeconds": 16,
    "burnInSeconds": 6,
    "fewestRequests": 2,
}
NAMES = ("chat", "code")


def scenario(name: str) -> dict[str, Any]:
    return {"name": name, "match": {"modelAliases": [name]}, "groups": {"replicas": 1}}


def extra_decodes(namespace: Namespace) -> dict[str, int]:
    """Decodes of each scenario beyond its one."""
    found = dict.fromkeys(NAMES, -1)
    for pod in namespace.pods("decode"):
        if (name := pod["metadata"]["labels"].get("tidewheel.dev/scenario")) in found:
            found[name] += 1
    return found


@pytest.mark.timeout(400)
async def test_boosts_follow_the_policy_and_their_rewards_are_recorded(namespace: Namespace) -> None:
    namespace.apply(
        pd_service(
            groups=0,
            scenarios=[scenario(name) for name in NAMES],
            scaling={"windowSeconds": 2},
            allocation=ALLOCATION,
        )
    )
    await asyncio.to_thread(eventually, lambda: namespace.condition().get("reason") == "Serving")
    client = AsyncOpenAI(base_url=f"{namespace.url()}/v1", api_key="none", max_retries=0, timeout=60)
    turns = iter(range(1_000_000))

    async def ask() -> str:
        await asyncio.sleep(0.1)
        answer = await client.chat.completions.create(
            model=NAMES[next(turns) % 2], messages=[{"role": "user", "content": "tide?"}], max_tokens=4
        )
        return answer.choices[0].message.content or ""

    boosted: set[str] = set()

    def both_had_a_turn() -> bool:
        extra = extra_decodes(namespace)
        # while one gives its pod back the other's may be there already
        assert sum(extra.values()) <= 2
        boosted.update(name for name, pods in extra.items() if pods > 0)
        return len(boosted) == 2

    def status() -> dict[str, Any]:
        return dict(namespace.get("pds", "chat")["status"].get("allocation") or {})

    async with steady_load(ask, clients=2) as outcomes:
        await asyncio.to_thread(eventually, both_had_a_turn)
        await asyncio.to_thread(eventually, lambda: status().get("rewards"))
    await client.close()

    told = status()
    assert told["picks"]
    assert told["message"]
    assert {reward["name"] for reward in told["rewards"]} <= set(NAMES)
    assert [outcome for outcome in outcomes if isinstance(outcome, BaseException)] == []
    decisions = namespace.get("pds", "chat")["status"]["decisions"]
    assert any(decision["action"] == "Boost" for decision in decisions)

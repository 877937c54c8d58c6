"""Under real load the operator moves the ratio to where the work is, and back, and no request fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI
from tests.e2e.cluster import Namespace, eventually, pd_service

#: The stand-in needs 300 ms for each prompt and 30 ms for each token; its profile says so.
ENGINE = "stand-in:tokens=400,prefill_ms=300,step_ms=30"
SCALING = {
    "mode": "Auto",
    "windowSeconds": 2,
    "startupSeconds": 3,
    "holdSeconds": 6,
    "prefill": {"max": 4},
    "decode": {"max": 4},
    "profile": {
        "prefill": {"baseMicroseconds": 300_000, "nanosecondsPerToken": 1},
        "decode": {"baseMicroseconds": 30_000},
    },
}
#: Requests a second and tokens of each answer: four sequences are being written, or a prompt and a half computed.
WRITING, READING = (1.0, 150), (5.0, 2)


def engine(slots: int) -> dict[str, Any]:
    variable = {"name": "TIDEWHEEL_MODEL_SOURCE", "value": ENGINE}
    return {
        "slots": slots,
        "template": {"spec": {"containers": [{"name": "worker", "env": [variable]}]}},
    }


class Load:
    """Requests that come at a rate, whatever becomes of those before; and how they ended."""

    def __init__(self, url: str) -> None:
        self._client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        self._tasks: set[asyncio.Task[None]] = set()
        self.kind = WRITING
        self.answered = 0
        self.failures: list[Exception] = []

    async def run(self) -> None:
        while True:
            task = asyncio.create_task(self._ask(self.kind[1]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(1 / self.kind[0])

    async def finish(self) -> None:
        await asyncio.gather(*self._tasks)
        await self._client.close()

    async def _ask(self, tokens: int) -> None:
        try:
            stream = await self._client.chat.completions.create(
                model="stand-in",
                messages=[{"role": "user", "content": "Is the tide in?"}],
                max_tokens=tokens,
                stream=True,
            )
            async for _ in stream:
                pass
            self.answered += 1
        except Exception as error:  # noqa: BLE001  (whatever a client sees is the outcome)
            self.failures.append(error)


@pytest.mark.timeout(400)
async def test_the_ratio_follows_the_work_and_no_request_fails(namespace: Namespace) -> None:
    namespace.apply(
        pd_service(
            prefill=engine(1),
            decode=engine(4),
            gateway={"ttftDeadlineSeconds": 60},
            scaling=SCALING,
            slo={"ttftMs": 3000, "tpotMs": 100},
        )
    )
    namespace.wait_settled()
    load = Load(namespace.url())
    running = asyncio.create_task(load.run())

    def numbers() -> tuple[int, int]:
        return tuple(
            sum(
                any(
                    c["type"] == "Ready" and c["status"] == "True"
                    for c in pod["status"].get("conditions", ())
                )
                for pod in namespace.pods(role)
            )
            for role in ("prefill", "decode")
        )

    async def comes_true(kind: tuple[float, int], holds) -> None:
        load.kind = kind
        try:
            await asyncio.to_thread(eventually, lambda: holds(*numbers()))
        except AssertionError:
            raise AssertionError(f"{numbers()} with {namespace.kubectl('describe', 'pds', 'chat')}") from None

    try:
        await comes_true(WRITING, lambda prefill, decode: decode > max(prefill, 1))
        await comes_true(READING, lambda prefill, decode: prefill > max(decode, 1))
        await comes_true(WRITING, lambda prefill, decode: decode > max(prefill, 1))
    finally:
        running.cancel()
        await load.finish()
    assert load.failures == []
    assert load.answered > 50
    status = namespace.get("pds", "chat")["status"]
    assert any(decision["action"] == "Scale" for decision in status["decisions"])
    (found,) = status["scaling"]["scenarios"]
    assert found["message"]
    assert found["needed"]

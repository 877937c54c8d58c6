"""One trace for a request through every process it visits, received over OTLP."""

from __future__ import annotations

import asyncio

from tests.e2e.cluster import Namespace, eventually, pd_service
from tests.e2e.test_serving import client
from tests.otlp_receiver import OtlpReceiver


async def test_a_request_is_one_trace_from_gateway_to_decode(namespace: Namespace) -> None:
    with OtlpReceiver() as receiver:
        exporter = [{"name": name, "value": value} for name, value in receiver.environment.items()]
        stand_in = {"name": "TIDEWHEEL_MODEL_SOURCE", "value": "stand-in"}
        template = {"template": {"spec": {"containers": [{"name": "worker", "env": [*exporter, stand_in]}]}}}
        namespace.apply(pd_service(prefill=template, decode=template, gateway=template))
        namespace.wait_settled()
        async with client(namespace) as openai:
            await openai.chat.completions.create(
                model="stand-in", messages=[{"role": "user", "content": "hello"}], max_tokens=4
            )

        def whole_trace() -> bool:
            pods: dict[str, set[str]] = {}
            for span in receiver.spans:
                pods.setdefault(span.trace_id, set()).add(span.resource["k8s.pod.name"])
            return any(len(visited) == 3 for visited in pods.values())

        assert await asyncio.to_thread(eventually, whole_trace)

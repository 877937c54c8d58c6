"""One request is one trace through all processes, received over OTLP as a collector would."""

from __future__ import annotations

import asyncio

from tests.local.serving.processes import Service, ask
from tests.otlp_receiver import OtlpReceiver

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


async def test_a_request_is_one_trace_through_gateway_prefill_transfer_and_decode(tmp_path):
    with (
        OtlpReceiver() as receiver,
        Service(directory=tmp_path, environment=receiver.environment) as service,
    ):
        async with service.client() as client:
            await client.chat.completions.create(
                **ask("hello"), extra_headers={"traceparent": f"00-{TRACE}-{CALLER}-01"}
            )

        def in_service(role: str):
            return lambda span: (
                span.resource["service.name"] == f"tidewheel-{role}" and span.trace_id == TRACE
            )

        async def span(name: str, role: str):
            return await asyncio.to_thread(receiver.wait_for_span, name, in_service(role))

        server = "POST /v1/chat/completions"
        gateway = await span(server, "gateway")
        assert gateway.parent_id == CALLER
        assert gateway.attributes["gen_ai.request.model"] == "stand-in-model"
        for role in ("prefill", "decode"):
            asked = await span(role, "gateway")
            assert asked.parent_id == gateway.span_id
            assert (await span(server, role)).parent_id == asked.span_id
        prefill, decode = await span(server, "prefill"), await span(server, "decode")
        assert (await span("compute prompt", "prefill")).parent_id == prefill.span_id
        transfer = await span("kv_transfer", "decode")
        assert transfer.parent_id == decode.span_id
        assert transfer.attributes["tidewheel.kv.bytes"] == 5 * 128
        sent = await span("kv_transfer send", "prefill")
        assert sent.parent_id == transfer.span_id
        assert transfer.links == ((TRACE, sent.span_id),)
        assert (await span("decode", "decode")).parent_id == decode.span_id

        for name in ("gen_ai.server.request.duration", "gen_ai.server.time_per_output_token"):
            metric = await asyncio.to_thread(receiver.wait_for_metric, name)
            assert metric.unit == "s"

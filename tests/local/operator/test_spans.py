"""One trace per reconcile that did something, linked to whoever applied the object."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.local.operator.conftest import World, operating
from tests.local.operator.fleets import FLEETS, fleet

from tidewheel.api.meta import ANNOTATION_TRACEPARENT
from tidewheel.controllers import execute, loop

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in (execute, loop):
        monkeypatch.setattr(module, "tracer", provider.get_tracer("test"))
    return exporter


async def test_a_reconcile_is_a_root_span_with_its_writes_below_and_a_link_to_the_clients_trace(
    world: World, spans: InMemorySpanExporter
):
    # A span that is current when the operator starts must not become the parent of what it does.
    outer = TracerProvider().get_tracer("test").start_span("outer")
    with trace.use_span(outer):
        async with operating(world):
            annotations = {ANNOTATION_TRACEPARENT: f"00-{TRACE_ID}-b7ad6b7169203331-01"}
            await world.api.create(FLEETS, fleet("f", size=2, annotations=annotations))
            await world.until_ready("f", size=2)
            await world.until_quiet()
    seen = spans.get_finished_spans()
    roots = [span for span in seen if span.name == "reconcile Fleet"]
    assert roots
    assert all(span.parent is None for span in roots)
    assert len({span.context.trace_id for span in roots}) == len(roots)
    assert [trace.format_trace_id(span.links[0].context.trace_id) for span in roots] == [TRACE_ID] * len(
        roots
    )
    first = roots[0]
    assert first.attributes is not None
    assert first.attributes["tidewheel.resource.name"] == "f"
    below = sorted(span.name for span in seen if span.parent and span.parent.span_id == first.context.span_id)
    assert below == ["apply ConfigMap", "apply Pod", "apply Pod", "plan", "status"]


async def test_a_reconcile_with_nothing_to_do_leaves_no_span(world: World, spans: InMemorySpanExporter):
    async with operating(world, resync_seconds=1) as operator:
        await world.api.create(FLEETS, fleet("f"))
        await world.until_ready("f", size=2)
        await world.until_quiet()
        spans.clear()
        done = operator.metrics.reconciles.labels("fleet", "success")._value
        before = done.get()

        async def resynced():
            return done.get() > before

        await world.until(resynced)
        assert spans.get_finished_spans() == ()

"""The trace context survives headers, environments and annotations, and nothing malformed gets in."""

from __future__ import annotations

import pytest
from opentelemetry import baggage, trace

from tidewheel.telemetry import (
    configure,
    context_from_environment,
    context_from_headers,
    link_from_annotations,
    passing_context,
    trace_environment,
    trace_headers,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def tracer():
    ours = configure("tidewheel-test", register=False)
    yield ours.tracer("test")
    ours.shutdown()


def ids(context):
    span = trace.get_current_span(context).get_span_context()
    return f"{span.trace_id:032x}", f"{span.span_id:016x}"


@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT"])
def test_headers_are_read_in_any_case(name):
    assert ids(context_from_headers({name: TRACEPARENT})) == (TRACE, SPAN)


@pytest.mark.parametrize(
    "value",
    ["", "nonsense", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{SPAN}-01"],
)
def test_a_malformed_header_starts_a_trace_of_its_own(value):
    assert (
        not trace.get_current_span(context_from_headers({"traceparent": value})).get_span_context().is_valid
    )


def test_a_span_left_current_does_not_become_the_parent_of_a_request(tracer):
    with tracer.start_as_current_span("somebody else's"):
        context = context_from_headers({})

    assert not trace.get_current_span(context).get_span_context().is_valid


def test_the_next_hop_continues_the_trace(tracer):
    with tracer.start_as_current_span("gateway") as span:
        headers = trace_headers()

    with tracer.start_as_current_span("prefill", context=context_from_headers(headers)) as next_hop:
        assert next_hop.get_span_context().trace_id == span.get_span_context().trace_id
        assert next_hop.parent.span_id == span.get_span_context().span_id


def test_no_span_makes_no_headers():
    assert trace_headers() == {}


@pytest.mark.parametrize("state", ["", "vendor=value"])
@pytest.mark.parametrize("tenant", [None, "a"])
def test_headers_are_those_of_the_propagators(state, tenant):
    given = {"traceparent": TRACEPARENT} | ({"tracestate": state} if state else {})
    context = context_from_headers(given)
    if tenant is not None:
        context = baggage.set_baggage("tenant", tenant, context)
        given["baggage"] = f"tenant={tenant}"

    assert trace_headers(context) == given


def test_a_process_that_sends_no_spans_passes_the_callers_context_on():
    assert trace_headers(passing_context({"host": "x", "traceparent": TRACEPARENT})) == {
        "traceparent": TRACEPARENT
    }


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}])
def test_without_a_caller_it_makes_ids_up_which_further_hops_share(headers):
    first, second = passing_context(headers), passing_context(headers)

    assert ids(first) != ids(second)
    assert ids(context_from_headers(trace_headers(first))) == ids(first)


def test_a_pods_environment_carries_trace_and_baggage():
    context = baggage.set_baggage("tenant", "a", context_from_headers({"traceparent": TRACEPARENT}))

    environment = trace_environment(context)

    assert environment == {"TRACEPARENT": TRACEPARENT, "BAGGAGE": "tenant=a"}
    carried = context_from_environment(environment)
    assert ids(carried) == (TRACE, SPAN)
    assert baggage.get_baggage("tenant", carried) == "a"


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("TRACEPARENT", TRACEPARENT)

    assert ids(context_from_environment()) == (TRACE, SPAN)


def test_a_resource_links_to_whoever_applied_it():
    link = link_from_annotations({"tidewheel.dev/traceparent": TRACEPARENT})

    assert link is not None
    assert (f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") == (TRACE, SPAN)


@pytest.mark.parametrize("annotations", [None, {}, {"tidewheel.dev/traceparent": "nonsense"}])
def test_without_a_valid_annotation_there_is_no_link(annotations):
    assert link_from_annotations(annotations) is None

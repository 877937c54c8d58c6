"""What leaves a process over OTLP, received by a real gRPC or HTTP collector."""

from __future__ import annotations

import gzip
import http.server
import os
import socket
import threading

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import INVALID_SPAN_CONTEXT
from tests.otlp_receiver import OtlpReceiver, otlp_receiver  # noqa: F401  (a fixture)

from tidewheel.telemetry import GenAiInstruments, TelemetryMisconfigured, configure, gen_ai_attributes


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for variable in list(os.environ):
        if variable.startswith("OTEL_") or variable in ("POD_NAME", "POD_NAMESPACE", "POD_UID", "NODE_NAME"):
            monkeypatch.delenv(variable)


@pytest.fixture
def collector(otlp_receiver, monkeypatch):  # noqa: F811
    for variable, value in otlp_receiver.environment.items():
        monkeypatch.setenv(variable, value)
    return otlp_receiver


def telemetry(**attributes: str):
    return configure("tidewheel-test", attributes=attributes, register=False)


def test_a_span_arrives_over_grpc_with_parent_attributes_and_resource(collector, monkeypatch):
    monkeypatch.setenv("POD_NAME", "chat-decode-0")
    monkeypatch.setenv("POD_NAMESPACE", "team-a")
    ours = telemetry(role="decode")
    tracer = ours.tracer("test")

    with tracer.start_as_current_span("request") as parent, tracer.start_as_current_span("decode") as child:
        child.set_attribute("gen_ai.request.model", "smollm2")
    assert ours.shutdown()

    span = collector.wait_for_span("decode")
    assert span.parent_id == f"{parent.get_span_context().span_id:016x}"
    assert span.trace_id == collector.wait_for_span("request").trace_id
    assert span.attributes == {"gen_ai.request.model": "smollm2"}
    expected = {
        "service.name": "tidewheel-test",
        "k8s.pod.name": "chat-decode-0",
        "k8s.namespace.name": "team-a",
        "role": "decode",
    }
    assert expected.items() <= span.resource.items()


def test_the_environment_has_the_last_word_on_the_resource(collector, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "renamed")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=staging,role=mine")
    ours = telemetry(role="decode")

    ours.tracer("test").start_span("request").end()
    ours.shutdown()

    resource = collector.wait_for_span("request").resource
    assert (resource["service.name"], resource["deployment.environment"], resource["role"]) == (
        "renamed",
        "staging",
        "mine",
    )


def test_gen_ai_histograms_arrive_with_the_published_boundaries(collector):
    ours = telemetry()
    instruments = GenAiInstruments.of(ours.meter("test"))
    attributes = gen_ai_attributes(operation="chat", request_model="smollm2")

    instruments.server_time_to_first_token.record(0.3, attributes)
    instruments.server_request_duration.record(1.5, attributes)
    instruments.client_token_usage.record(17, attributes | {"gen_ai.token.type": "input"})
    ours.shutdown()

    first_token = collector.wait_for_metric("gen_ai.server.time_to_first_token")
    (point,) = first_token.message.histogram.data_points
    assert first_token.unit == "s"
    assert list(point.explicit_bounds[:5]) == [0.001, 0.005, 0.01, 0.02, 0.04]
    assert point.explicit_bounds[-1] == 10.0
    assert {pair.key: pair.value.string_value for pair in point.attributes} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tidewheel",
        "gen_ai.request.model": "smollm2",
    }
    (duration,) = collector.wait_for_metric("gen_ai.server.request.duration").message.histogram.data_points
    assert (duration.explicit_bounds[0], duration.explicit_bounds[-1]) == (0.01, pytest.approx(81.92))
    (tokens,) = collector.wait_for_metric("gen_ai.client.token.usage").message.histogram.data_points
    assert list(tokens.explicit_bounds[:3]) == [1, 4, 16]
    assert tokens.explicit_bounds[-1] == 67108864


class _HttpCollector(http.server.BaseHTTPRequestHandler):
    receiver: OtlpReceiver
    paths: list[str]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.paths.append(self.path)
        if self.path == "/v1/traces":
            self.receiver.receive_traces(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_span_arrives_over_http(monkeypatch):
    receiver = OtlpReceiver()
    handler = type("Handler", (_HttpCollector,), {"receiver": receiver, "paths": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        ours = telemetry()
        ours.tracer("test").start_span("request").end()
        assert ours.shutdown()
        server.shutdown()

    assert [span.name for span in receiver.spans] == ["request"]
    assert "/v1/traces" in handler.paths


def test_without_an_endpoint_spans_still_have_ids():
    ours = telemetry()

    with ours.tracer("test").start_as_current_span("request") as span:
        assert span.get_span_context().is_valid
    assert ours.shutdown()


def test_a_disabled_sdk_makes_no_spans_and_sends_nothing(collector, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    ours = telemetry()

    span = ours.tracer("test").start_span("request")
    assert span.get_span_context() == INVALID_SPAN_CONTEXT
    span.end()
    ours.shutdown()
    assert collector.spans == ()


def test_the_sampler_of_the_environment_is_obeyed(collector, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    ours = telemetry()

    assert not ours.tracer("test").start_span("request").is_recording()
    ours.shutdown()
    assert collector.spans == ()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", id="a protocol nobody offers"),
        pytest.param("OTEL_TRACES_EXPORTER", "zipkin", id="an exporter nobody offers"),
    ],
)
def test_a_setting_that_cannot_be_met_is_refused_by_name(monkeypatch, variable, value):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv(variable, value)

    with pytest.raises(TelemetryMisconfigured, match=f"{variable}={value}"):
        telemetry()


def test_a_collector_that_never_answers_does_not_hold_up_the_shutdown(monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        ours = telemetry()
        ours.tracer("test").start_span("request").end()

        assert ours.shutdown(timeout_seconds=0.2) is False

        # The attempt goes on behind the caller's back; its complaint belongs to this test, not to the next.
        for thread in threading.enumerate():
            if thread.name == "telemetry-shutdown":
                thread.join()
    assert "telemetry was not sent within 0.2 s" in caplog.text

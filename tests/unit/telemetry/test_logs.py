"""Log lines that machines and people can read, each with the span it belongs to."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings

import pytest

from tidewheel.telemetry import configure, configure_logging

log = logging.getLogger("tidewheel.test")


@pytest.fixture(autouse=True)
def _root_logger_is_restored():
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def lines(log_format="json", level="info"):
    stream = io.StringIO()
    configure_logging(log_format, level, stream=stream)
    return lambda: stream.getvalue().splitlines()


def test_a_record_is_one_json_object_with_its_extra_fields():
    written = lines()

    log.info("pod %s\nstarted", "a", extra={"namespace": "team-a", "pods": 3})

    (line,) = written()
    record = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("ts"))
    assert record == {
        "level": "info",
        "logger": "tidewheel.test",
        "message": "pod a\nstarted",
        "namespace": "team-a",
        "pods": 3,
    }


def test_a_record_inside_a_span_carries_its_ids():
    written = lines()
    ours = configure("tidewheel-test", register=False)

    with ours.tracer("test").start_as_current_span("request") as span:
        log.info("inside")
    log.info("outside")
    ours.shutdown()

    inside, outside = (json.loads(line) for line in written())
    assert inside["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert inside["span_id"] == f"{span.get_span_context().span_id:016x}"
    assert "trace_id" not in outside


def test_an_exception_stays_on_its_line():
    written = lines()

    try:
        raise LookupError("no such group")
    except LookupError:
        log.exception("reconcile failed")

    (line,) = written()
    error = json.loads(line)["error"]
    assert (error["type"], error["message"]) == ("LookupError", "no such group")
    assert "test_an_exception_stays_on_its_line" in error["stack"]


def test_an_extra_field_cannot_hide_a_field_of_the_record():
    written = lines()

    log.warning("seen", extra={"level": "mine", "error": "timeout", "at": {1}})

    record = json.loads(written()[0])
    assert (record["level"], record["level_"], record["error_"], record["at"]) == (
        "warning",
        "mine",
        "timeout",
        "{1}",
    )


def test_text_is_for_people():
    written = lines("text")

    log.warning("pod %s is gone", "a", extra={"namespace": "team-a"})

    assert written()[0].endswith("WARNING tidewheel.test: pod a is gone namespace=team-a")


def test_the_level_holds_back_what_is_less_severe():
    written = lines(level="warning")

    log.info("quiet")
    log.warning("loud")

    assert [json.loads(line)["message"] for line in written()] == ["loud"]


def test_python_warnings_are_logged():
    written = lines()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    assert json.loads(written()[0])["logger"] == "py.warnings"


@pytest.mark.parametrize(
    ("log_format", "level", "said"),
    [
        pytest.param("yaml", "info", "log format 'yaml' does not exist", id="format"),
        pytest.param("json", "loud", "log level 'loud' does not exist; use one of", id="level"),
    ],
)
def test_a_wrong_setting_says_what_there_is(log_format, level, said):
    with pytest.raises(ValueError, match=said):
        configure_logging(log_format, level)

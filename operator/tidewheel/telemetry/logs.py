"""Logs on standard error, one JSON object or one human line each, with the ids of the span they belong to."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TextIO

from tidewheel.telemetry.context import trace_ids

LogFormat = Literal["json", "text"]

#: What a LogRecord has by itself; everything else came with `extra=`.
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: What kopf attaches to its records for its own handlers.
_KOPF_ATTRIBUTES = frozenset({"settings", "k8s_skip"})
_NOT_EXTRA = _OWN_ATTRIBUTES | _KOPF_ATTRIBUTES
_encode = json.JSONEncoder(default=str, ensure_ascii=False).encode


def configure_logging(
    log_format: LogFormat = "json", level: str = "info", *, stream: TextIO | None = None
) -> None:
    """Makes the root logger write lines of `log_format` to `stream` (standard error) and drops other handlers.

    Python warnings are logged too. Call it again to change format or level.

    Raises:
        ValueError: there is no such format or level.
    """
    levels = logging.getLevelNamesMapping()
    if level.upper() not in levels:
        known = ", ".join(sorted(name.lower() for name in levels if name != "NOTSET"))
        raise ValueError(f"log level {level!r} does not exist; use one of {known}")
    if log_format not in ("json", "text"):
        raise ValueError(f"log format {log_format!r} does not exist; use json or text")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(levels[level.upper()])
    logging.captureWarnings(capture=True)


def timestamp(created: float) -> str:
    """A time as all log lines tell it, in UTC and milliseconds.

    Args:
        created: seconds since the epoch.
    """
    second = int(created)
    return f"{_second(second)}.{int(1000 * (created - second)):03d}Z"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, logger, message, trace_id, span_id, the extra fields, error.

    An extra field that would hide one of these gets a trailing underscore. Values JSON does not know
    are written as their `str()`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        fields: dict[str, Any] = {
            "ts": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **trace_ids(),
        }
        for name, value in _extra(record).items():
            fields[f"{name}_" if name in fields or name == "error" else name] = value
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields["error"] = {
                "type": _type_name(type(error)),
                "message": str(error),
                "stack": "".join(traceback.format_exception(error)),
            }
        if record.stack_info:
            fields["stack"] = record.stack_info
        return _encode(fields)


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: message key=value trace_id=...`, and the traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        pairs = "".join(f" {name}={value}" for name, value in (_extra(record) | trace_ids()).items())
        lines = [
            f"{timestamp(record.created)} {record.levelname:<7} {record.name}: {record.getMessage()}{pairs}"
        ]
        if record.exc_info and record.exc_info[1] is not None:
            lines.append(self.formatException(record.exc_info))
        if record.stack_info:
            lines.append(self.formatStack(record.stack_info))
        return "\n".join(lines)


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    """Written once for all records of one second."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _NOT_EXTRA}


def _type_name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"

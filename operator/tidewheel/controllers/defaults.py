"""What the operator's settings mean for the planners: reads the accelerator file and hands telemetry on to workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from tidewheel.api.accelerators import Accelerator, AcceleratorTable
from tidewheel.controllers.settings import OperatorSettings
from tidewheel.planning.settings import ServiceDefaults

#: Workers report where the operator does. Headers stay behind: they may hold a secret, and pods can be read.
_HANDED_ON = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_INSECURE",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
)


class UnreadableAccelerators(Exception):
    """The accelerator file is missing or wrong; the message names the row and the field."""


def service_defaults(
    settings: OperatorSettings, environment: Mapping[str, str] = os.environ
) -> ServiceDefaults:
    """The operator-wide defaults of PDServices.

    Raises:
        UnreadableAccelerators: see there.
    """
    defaults = ServiceDefaults(
        accelerators=accelerator_table(settings.accelerators),
        environment={name: environment[name] for name in _HANDED_ON if environment.get(name)},
    )
    if settings.worker_image is None:
        return defaults
    return ServiceDefaults(
        image=settings.worker_image,
        accelerators=defaults.accelerators,
        environment=defaults.environment,
    )


def accelerator_table(file: Path | None) -> AcceleratorTable:
    """The rows of a YAML list, which replace the built-in ones; the built-in ones without a file.

    Raises:
        UnreadableAccelerators: see there.
    """
    if file is None:
        return AcceleratorTable()
    try:
        rows = TypeAdapter(tuple[Accelerator, ...]).validate_python(yaml.safe_load(file.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise UnreadableAccelerators(f"--accelerators {file}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UnreadableAccelerators(f"--accelerators {file}: {where}: {first['msg']}") from error
    return AcceleratorTable(rows)

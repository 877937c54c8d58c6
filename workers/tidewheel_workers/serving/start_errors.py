"""Why a process cannot start, beside its model; reported through the same termination log."""

from __future__ import annotations

import errno

from tidewheel.api.reasons import Reason
from tidewheel_workers.llm.errors import ModelError


class CannotStart(ModelError):
    """A process cannot start, or cannot go on."""

    reason = Reason.CRASH_LOOP


class BadEnvironment(CannotStart):
    """The environment variables describe no process that could run."""

    reason = Reason.INVALID_SPEC


class PortTaken(CannotStart):
    """Something else listens where this process should."""

    reason = Reason.PORT_TAKEN


class SickDevice(CannotStart):
    """A device of this process is not to be trusted any more."""

    reason = Reason.DEVICE_UNHEALTHY


def cannot_listen(error: OSError, host: str, port: int) -> CannotStart:
    """Why an address cannot be bound."""
    if error.errno == errno.EADDRINUSE:
        return PortTaken(f"{host}:{port} is in use by another process; free it or choose another port")
    return CannotStart(f"cannot listen on {host}:{port}: {error.strerror or error}")


def cannot_reserve(error: OSError, size: int, buffers: int) -> CannotStart:
    """Why the buffers of the KV transfer cannot be had."""
    return CannotStart(
        f"cannot reserve {buffers} KV buffers of {size} bytes: {error.strerror or error}; "
        "lower slots or maxContextTokens, or raise the limit of address space (ulimit -v)"
    )

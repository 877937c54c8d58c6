"""What a serving process is told by its environment; the only place where these variables are named and read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tidewheel.api.meta import HTTP_PORT, KV_PORT, RANKS_PATH, ROUTES_PATH
from tidewheel_workers.serving.kv_transport import KVMode

PREFIX = "TIDEWHEEL_"
#: Set by the downward API, so without the prefix.
POD_VARIABLES = {"pod_name": "POD_NAME", "pod_ip": "POD_IP", "pod_uid": "POD_UID"}

#: An empty variable means the same as a missing one.
OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: value or None)]
OptionalCount = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(lambda value: value or None)]
OptionalText = Annotated[str | None, BeforeValidator(lambda value: value or None)]


class BadSettings(Exception):
    """The environment does not describe a process that could run; the text names the variables."""


class Settings(BaseModel):
    """What all roles share."""

    model_config = ConfigDict(frozen=True)

    service: str = "local"
    model_name: str
    pod_name: str = "local"
    pod_ip: str = "127.0.0.1"
    pod_uid: str = ""
    http_port: int = Field(HTTP_PORT, ge=0, le=65535)
    max_body_bytes: int = Field(1_048_576, ge=1024)
    drain_seconds: float = Field(30.0, ge=0)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The settings that the variables say; TIDEWHEEL_<FIELD>, or as in POD_VARIABLES.

        Raises:
            BadSettings: a variable is missing or not what it should be.
        """
        values: dict[str, Any] = {}
        for field in cls.model_fields:
            variable = variable_of(field)
            if variable in environment:
                values[field] = environment[variable]
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            faults = "; ".join(
                f"{variable_of(str(fault['loc'][0]))}: {fault['msg']}" for fault in error.errors()
            )
            raise BadSettings(faults) from error


class WorkerSettings(Settings):
    """A prefill or a decode server's."""

    role: Literal["prefill", "decode"]
    group: str
    model_source: str
    dtype: str = "auto"
    quantization: Literal["None", "Int8"] = "None"
    device: str = "cpu"
    device_module: OptionalText = None
    max_context_tokens: int = Field(2048, ge=1)
    slots: int = Field(4, ge=1)
    kv_cache_tokens: OptionalCount = None
    batch_tokens: OptionalCount = None
    #: The same three in the other role, should the pod be given it; without slots it has as many there.
    flip_slots: OptionalCount = None
    flip_kv_cache_tokens: OptionalCount = None
    flip_batch_tokens: OptionalCount = None
    kv_port: int = Field(KV_PORT, ge=0, le=65535)
    ranks_file: Path = Path(RANKS_PATH)
    device_health_file: OptionalPath = None
    devices_variable: OptionalText = None
    peer_timeout_seconds: float = Field(30.0, gt=0)
    kv_lease_seconds: float = Field(30.0, gt=0)
    kv_timeout_seconds: float = Field(10.0, gt=0)
    kv_mode: KVMode = "Whole"
    kv_transfers: int = Field(2, ge=1)
    kv_waiting: int = Field(8, ge=0)

    @classmethod
    def for_role(cls, role: str, environment: Mapping[str, str] = os.environ) -> Self:
        """The settings of a program that has only this role.

        Raises:
            BadSettings: as in `from_environment`.
        """
        return cls.from_environment({**environment, variable_of("role"): role})

    def flipped(self) -> Self:
        """The settings of the same pod in the other role."""
        return self.model_copy(
            update={
                "role": "decode" if self.role == "prefill" else "prefill",
                "slots": self.flip_slots or self.slots,
                "kv_cache_tokens": self.flip_kv_cache_tokens,
                "batch_tokens": self.flip_batch_tokens,
                "flip_slots": self.slots,
                "flip_kv_cache_tokens": self.kv_cache_tokens,
                "flip_batch_tokens": self.batch_tokens,
            }
        )


class GatewaySettings(Settings):
    """A gateway's."""

    routes_file: Path = Path(ROUTES_PATH)
    ttft_deadline_seconds: float = Field(30.0, gt=0)
    request_timeout_seconds: float = Field(300.0, gt=0)
    stream_idle_seconds: float = Field(30.0, gt=0)
    on_decode_loss: Literal["Resume", "Error", "DefaultText"] = "Resume"
    default_text: str = ""
    prefill_order: Literal["LeastLoaded", "FillFirst"] = "LeastLoaded"
    prefill_affinity: Literal["Prefix", "None"] = "Prefix"
    candidates: int = Field(4, ge=1)
    max_waiting: int = Field(1024, ge=0)
    short_prompt_characters: int = Field(0, ge=0)
    api_keys_file: OptionalPath = None
    gateway_processes: int = Field(0, ge=0, le=64)  # 0: as many as the CPU limit has room for
    page: Literal["Enabled", "Disabled"] = "Enabled"
    kv_mode: KVMode = "Whole"


def variable_of(field: str) -> str:
    """The environment variable that sets a field."""
    return POD_VARIABLES.get(field, PREFIX + field.upper())

"""What the operator can be told: one frozen value, whose fields are the flags of `tidewheel operator`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Address(BaseModel):
    """Where a server listens; port 0 lets the system choose."""

    model_config = ConfigDict(frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)

    @classmethod
    def parse(cls, text: str) -> Address:
        """`HOST:PORT`, `:PORT` for all interfaces, or `[IPV6]:PORT`.

        Raises:
            ValueError: there is no port in it.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal():
            raise ValueError(f"{text!r} is no address; write HOST:PORT or :PORT")
        return cls(host=host.strip("[]") or "0.0.0.0", port=int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class LeaseSettings(BaseModel):
    """Who may act, and how soon another takes over. The defaults are client-go's."""

    model_config = ConfigDict(frozen=True)

    namespace: str | None = Field(None, description="None takes the namespace the operator runs in.")
    name: str = "tidewheel-operator"
    duration_seconds: float = Field(15.0, gt=0)
    renew_deadline_seconds: float = Field(10.0, gt=0)
    retry_seconds: float = Field(2.0, gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> LeaseSettings:
        if not self.duration_seconds > self.renew_deadline_seconds > self.retry_seconds:
            raise ValueError(
                "lease: duration_seconds must exceed renew_deadline_seconds, and that retry_seconds, or two "
                "replicas could act at a time"
            )
        return self


class OperatorSettings(BaseModel):
    """All settings of one operator process."""

    model_config = ConfigDict(frozen=True)

    kubeconfig: Path | None = None
    namespaces: tuple[str, ...] = Field((), description="Empty means the whole cluster.")
    worker_image: str | None = None
    accelerators: Path | None = None
    leader_election: bool = True
    lease: LeaseSettings = LeaseSettings()
    concurrency: int = Field(2, ge=1, le=256)
    resync_seconds: float = Field(600.0, ge=1)
    shutdown_seconds: float = Field(2.0, ge=0, description="How long running reconciles may go on.")
    log_format: Literal["json", "text"] = "json"
    log_level: str = "info"
    health_address: Address | None = None
    metrics_address: Address | None = None

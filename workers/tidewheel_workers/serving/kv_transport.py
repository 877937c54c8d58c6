"""The seam between the servers and the way KV travels, so that another fabric than TCP can take its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidewheel_workers.serving.engine import Prefilled


#: The error code of a decode that could not get the KV: the gateway has the prompt computed again.
TRANSFER_FAILED = "kv_transfer_failed"
#: Where a prefill is told, with a HandOver as the body, that nobody will fetch this KV.
RELEASE_PATH = "/kv/release"


class HandOver(BaseModel):
    """`kv_transfer_params` of a prefill's answer and of the decode request made from it: where the KV waits.

    The names are vLLM's; `remote_bearer` and `remote_tokens` are ours. The bearer is good for one fetch.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    do_remote_prefill: Literal[True] = True
    do_remote_decode: Literal[False] = False
    remote_engine_id: str = Field(max_length=253)
    remote_host: str = Field(max_length=64)
    remote_port: int = Field(ge=1, le=65535)
    remote_request_id: str = Field(max_length=64)
    remote_bearer: str = Field(max_length=64)
    remote_tokens: int = Field(ge=1, le=1 << 24)


class TransferFailed(Exception):
    """A prompt's KV cannot be had; the request needs a new prefill. `reason` labels the counter."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class KVSender(Protocol):
    """Prefill's end."""

    def offer(self, computed: Prefilled, *, on_release: Callable[[], None]) -> HandOver:
        """Hold a prompt's KV until it was fetched and released, is withdrawn, or its lease ends."""

    def withdraw(self, hand_over: HandOver) -> bool:
        """Give an offer up; False when there is none, or the bearer is wrong."""


class KVReceiver(Protocol):
    """Decode's end."""

    async def fetch(self, hand_over: HandOver) -> Prefilled:
        """Bring a prompt's KV here and let the sender release it.

        Raises:
            TransferFailed: it cannot be had.
        """

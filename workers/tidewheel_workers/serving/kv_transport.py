"""The seam between the servers and the way KV travels, so that another fabric than TCP can take its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidewheel_workers.serving.engine import Computed, Prefilled
    from tidewheel_workers.serving.kv_buffer import GivenUp, KVBuffer


#: How KV goes over: when the whole prompt is computed, layer by layer while it is, or afterwards in a message for each block of
#: each plane, which is the baseline that the other two are measured against.
KVMode = Literal["Whole", "PerLayer", "Blocks"]

#: The error code of a decode that could not get the KV: the gateway has the prompt computed again.
TRANSFER_FAILED = "kv_transfer_failed"
#: Where a prefill is told, with a HandOver or just its `remote_bearer` as the body, that nobody will fetch this KV.
RELEASE_PATH = "/kv/release"
#: In the head of a prefill's answer, when it was asked to tell early: the HandOver as JSON.
HAND_OVER_HEADER = "x-tidewheel-hand-over"


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


class TransfersBusy(Exception):
    """So many transfers wait already that one more is refused; nothing was asked of the prefill."""


class KVOffer(Protocol):
    """A prompt's KV that one decode may fetch, from before it is computed if the transport can."""

    @property
    def hand_over(self) -> HandOver:
        """What the decode needs to know."""

    def on_end(self, call: Callable[[], None]) -> None:
        """Have this called when the offer ends, however that comes."""

    def finish(self, end: Computed | GivenUp) -> None:
        """The prompt is computed, or will not be: a decode that fetches already is told so."""


class KVSender(Protocol):
    """Prefill's end."""

    def reserve(self, tokens: int, *, on_free: Callable[[], None]) -> KVBuffer:
        """Memory that this transport can send from, held once by the caller.

        Raises:
            NoBuffer: there is none.
        """

    def offer(self, buffer: KVBuffer, *, bearer: str | None = None) -> KVOffer:
        """Hold it until it was fetched and released, is withdrawn, or a lease ends that begins when it is computed.

        Without a `bearer` it gets a random one.
        """

    def withdraw(self, bearer: str) -> bool:
        """Give an offer up; False when none has this bearer."""


class Received(Protocol):
    """A prompt's KV that came."""

    @property
    def computed(self) -> Prefilled:
        """What an engine admits; its memory is there until `free`."""

    def free(self) -> None:
        """The engine has taken it over. A second call changes nothing."""


class KVReceiver(Protocol):
    """Decode's end."""

    async def fetch(self, hand_over: HandOver) -> Received:
        """Bring a prompt's KV here and let the sender release it; cancelling frees both ends.

        Raises:
            TransferFailed: it cannot be had.
            TransfersBusy: too many wait before it.
        """

"""`kv_transfer_params` of requests, in vLLM's vocabulary: what a prefill and a decode are asked by a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidewheel_workers.serving.errors import invalid
from tidewheel_workers.serving.kv_transport import HandOver
from tidewheel_workers.serving.resumed import RESUMED

if TYPE_CHECKING:
    from tidewheel_workers.serving.openai_api import ChatRequest, CompletionRequest


class PrefillAsked(BaseModel):
    """Compute a prompt for a decode elsewhere.

    `early` asks to say where its KV will be as soon as the prompt is accepted. `remote_bearer` is the secret by which the KV is
    to be had or given up; who chooses it can give up a KV although the answer never came.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    do_remote_decode: Literal[True]
    early: bool = False
    remote_bearer: str | None = Field(None, min_length=32, max_length=64)


Params = TypeVar("Params", PrefillAsked, HandOver)


def prefill_asked(parsed: ChatRequest | CompletionRequest) -> PrefillAsked | None:
    """What a gateway asks of a prefill; None when the request is no gateway's.

    Raises:
        ApiError: it is, and wrong.
    """
    given = parsed.kv_transfer_params
    if not given or not given.get("do_remote_decode"):
        return None
    return _read(PrefillAsked, given, "ask as a gateway does")


def decode_asked(parsed: ChatRequest | CompletionRequest) -> HandOver | None:
    """Where a decode is to fetch the prompt's KV; None when the prompt is to be computed there.

    Raises:
        ApiError: the parameters are not those of a prefill's answer.
    """
    given = parsed.kv_transfer_params
    if not given or not given.keys() - {RESUMED}:
        return None
    return _read(HandOver, given, "they must be those of a prefill's answer")


def _read(kind: type[Params], given: dict[str, Any], hint: str) -> Params:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        raise invalid(
            "invalid_value",
            f"kv_transfer_params.{name}: {fault['msg']}; {hint}",
            f"kv_transfer_params.{name}",
        ) from error

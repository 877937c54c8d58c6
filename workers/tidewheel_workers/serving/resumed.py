"""Answers that are resumed: how a gateway tells a server which tokens the client has, and a decode which ones it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from tidewheel_workers.serving.errors import invalid

if TYPE_CHECKING:
    from tidewheel_workers.serving.engine import Generated

#: In `kv_transfer_params`: the tokens of the answer that the client has already.
RESUMED = "resumed_token_ids"
#: Asks a decode to put the ids of each chunk's tokens before it.
IDS_HEADER = "x-tidewheel-token-ids"

_TOKENS = TypeAdapter(
    Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...], Field(max_length=1 << 24)]
)


def resumed_tokens(params: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The tokens that are there already; none of a new answer.

    Raises:
        ApiError: they are no tokens.
    """
    given = (params or {}).get(RESUMED)
    if given is None:
        return ()
    try:
        return _TOKENS.validate_python(given)
    except ValidationError as error:
        name = f"kv_transfer_params.{RESUMED}"
        raise invalid("invalid_value", f"{name}: they must be token ids", name) from error


def id_line(event: Generated) -> bytes:
    """The line before a chunk that tells its token."""
    return b"" if event.token is None else b"id: %d\n" % event.token

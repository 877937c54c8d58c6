"""Which form of an answer the Accept header asks for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tidewheel.local.apiserver.errors import ApiError


@dataclass(frozen=True, slots=True)
class Form:
    """A media type, and what the object is to be shown as (empty for itself)."""

    media_type: str = "application/json"
    shown_as: str = ""
    version: str = ""

    @property
    def is_table(self) -> bool:
        """Whether rows and columns are wanted, as kubectl get does."""
        return self.shown_as == "Table"

    @property
    def is_metadata(self) -> bool:
        """Whether only metadata is wanted."""
        return self.shown_as in ("PartialObjectMetadata", "PartialObjectMetadataList")


@lru_cache(maxsize=256)
def preferred(accept: str) -> Form:
    """The first form in an Accept header that this server can give.

    Raises:
        ApiError: 406 when there is none, for instance protobuf alone.
    """
    for clause in accept.split(",") if accept else ["*/*"]:
        kind, *words = [part.strip() for part in clause.split(";")]
        parameters = dict(word.split("=", 1) for word in words if "=" in word)
        if kind in ("*/*", "application/*"):
            return Form()
        if kind in ("application/json", "application/yaml"):
            shown_as = parameters.get("as", "")
            if shown_as in (
                "",
                "Table",
                "PartialObjectMetadata",
                "PartialObjectMetadataList",
                "APIGroupDiscoveryList",
            ):
                return Form(kind, shown_as, parameters.get("v", ""))
    raise ApiError(
        406,
        "NotAcceptable",
        "only the following media types are accepted: application/json, application/yaml",
    )

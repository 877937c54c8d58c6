"""The maps the operator publishes: who is in a group (rank table), and where gateways may send requests (routes)."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field

from tidewheel.api.meta import HTTP_PORT, KV_PORT
from tidewheel.api.model import ApiModel
from tidewheel.api.scenarios import RouteScenario

Role = Literal["prefill", "decode", "gateway"]

#: The first rank of decode pods; a group has at most this many prefill pods.
DECODE_RANKS = 64


class Published(ApiModel):
    """A document that travels as one key of a ConfigMap."""

    def to_text(self) -> str:
        """Canonical JSON: equal content gives equal text."""
        return json.dumps(self.to_wire(), sort_keys=True, indent=1)

    def digest(self) -> str:
        """Sixteen hexadecimal digits that change whenever the content does."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()[:16]


class Member(ApiModel):
    """One pod of a group."""

    rank: int = Field(
        ge=0,
        description=(
            "rank is the member's place in the group, which its substitute inherits: "
            "prefill i has rank i, decode i has rank 64 + i."
        ),
    )
    role: Literal["prefill", "decode"] = Field(description="role is what the member does.")
    name: str = Field(max_length=253, description="name is the pod's name.")
    uid: str = Field(max_length=64, description="uid is the pod's uid; a namesake is another member.")
    address: str = Field(max_length=64, description="address is the pod's IP address.")
    http_port: int = Field(HTTP_PORT, ge=1, le=65535, description="httpPort takes requests and probes.")
    kv_port: int = Field(KV_PORT, ge=1, le=65535, description="kvPort carries the KV cache.")
    devices: tuple[str, ...] = Field((), description="devices are the accelerator indices the member holds.")


class RankTable(Published):
    """The members of one group, published once each has an address (P/D-Serve §3.2's RoCE map)."""

    schema_version: Literal[1] = Field(1, description="schemaVersion is the version of this document's form.")
    service: str = Field(max_length=63, description="service is the PDService's name.")
    group: str = Field(max_length=63, description="group is the group's name.")
    revision: str = Field(max_length=63, description="revision is the pod revision all members share.")
    members: tuple[Member, ...] = Field(description="members are all pods of the group, by rank.")
    combined: bool = Field(
        False,
        description="combined is whether decodes serve without prefills, also while some are joining.",
    )

    def of_role(self, role: Role) -> tuple[Member, ...]:
        """The members that have `role`."""
        return tuple(member for member in self.members if member.role == role)


class Backend(ApiModel):
    """One pod a gateway may send to."""

    name: str = Field(max_length=253, description="name is the pod's name.")
    address: str = Field(max_length=64, description="address is the pod's IP address.")
    port: int = Field(HTTP_PORT, ge=1, le=65535, description="port takes HTTP requests.")


class RouteGroup(ApiModel):
    """The ready members of one group; a request's prefill and decode come from the same group."""

    name: str = Field(max_length=63, description="name is the group's name.")
    combined: bool = Field(
        False,
        description="combined is whether its decodes compute the prompts, too; it has no prefills to be asked then.",
    )
    prefill: tuple[Backend, ...] = Field((), description="prefill are the ready prefill pods.")
    decode: tuple[Backend, ...] = Field(description="decode are the ready decode pods.")


class Routes(Published):
    """What a PDService's gateways know of its groups."""

    schema_version: Literal[1] = Field(1, description="schemaVersion is the version of this document's form.")
    service: str = Field(max_length=63, description="service is the PDService's name.")
    model: str = Field(max_length=253, description="model is the name the model is served under.")
    groups: tuple[RouteGroup, ...] = Field(
        (), description="groups are those with a ready prefill and decode, or combined with a ready decode."
    )
    gateways: int = Field(
        1, ge=1, description="gateways is how many gateways share the groups and leave slots to each other."
    )
    default_groups: tuple[str, ...] | None = Field(
        None, description="defaultGroups serve the requests that no scenario matches; left out, all do."
    )
    scenarios: tuple[RouteScenario, ...] = Field(
        (), description="scenarios tell requests apart; the first one that matches is a request's."
    )

"""The base of every API model: camelCase on the wire, frozen in memory, CEL rules beside the fields they guard."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A piece of an API object.

    Unknown fields are ignored on reading, as the API server prunes them. Each field's description, bounds
    and default stand here and nowhere else; the CRD and the reference page are generated from them.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=False,
    )

    #: Rules between fields, checked by the API server with `self` bound to this object.
    cel_rules: ClassVar[tuple[CelRule, ...]] = ()

    def to_wire(self) -> dict[str, Any]:
        """The object as JSON for the API: camelCase, without what is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class CelRule(BaseModel):
    """One `x-kubernetes-validations` entry."""

    model_config = ConfigDict(frozen=True)

    rule: str
    message: str
    #: The field the message is about, as a CEL path such as `.source`.
    field_path: str | None = None

    def to_schema(self) -> dict[str, str]:
        """The entry as it stands in the CRD."""
        entry = {"rule": self.rule, "message": self.message}
        if self.field_path:
            entry["fieldPath"] = self.field_path
        return entry


class PrinterColumn(BaseModel):
    """One column of `kubectl get`; priority 1 shows it with `-o wide` only."""

    model_config = ConfigDict(frozen=True)

    name: str
    type: Literal["string", "integer", "date", "boolean"]
    json_path: str
    description: str
    priority: Literal[0, 1] = 0

    def to_schema(self) -> dict[str, Any]:
        """The entry as it stands in the CRD."""
        column: dict[str, Any] = {
            "name": self.name,
            "type": self.type,
            "jsonPath": self.json_path,
            "description": self.description,
        }
        return column | ({"priority": 1} if self.priority else {})


class ScaleSubresource(BaseModel):
    """Where `kubectl scale` and an autoscaler read and write the one number they know."""

    model_config = ConfigDict(frozen=True)

    spec_replicas_path: str
    status_replicas_path: str
    label_selector_path: str


class CustomResource(ApiModel):
    """A kind of its own: what its CRD says beside the schema. Subclasses add `spec` and `status`."""

    group: ClassVar[str] = "tidewheel.dev"
    version: ClassVar[str] = "v1alpha1"
    plural: ClassVar[str]
    short_names: ClassVar[tuple[str, ...]]
    categories: ClassVar[tuple[str, ...]] = ("tidewheel",)
    printer_columns: ClassVar[tuple[PrinterColumn, ...]]
    scale: ClassVar[ScaleSubresource | None] = None


QUANTITY_PATTERN = r"^([0-9]+(\.[0-9]+)?|\.[0-9]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]+)?$"
#: A resource amount: an integer, or a string such as `500m` or `2Gi`.
Quantity = Annotated[
    int | str,
    Field(json_schema_extra={"x-tidewheel-quantity": True}, union_mode="left_to_right"),
]

#: A DNS-1123 label: a name that fits in a label value and a host name.
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]

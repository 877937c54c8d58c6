"""What the API server says about a field it refuses; every validating module speaks in these values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Manifest = dict[str, Any]

Reason = Literal[
    "FieldValueNotFound",
    "FieldValueRequired",
    "FieldValueDuplicate",
    "FieldValueInvalid",
    "FieldValueNotSupported",
    "FieldValueForbidden",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueTypeInvalid",
    "InternalError",
]


class BadRequest(ValueError):
    """The request cannot be read or understood; the API answers 400 with this text as the message."""


@dataclass(frozen=True, slots=True)
class Gvk:
    """Group, version and kind of a resource; the core group is the empty string."""

    group: str
    version: str
    kind: str

    @classmethod
    def of(cls, obj: Mapping[str, Any]) -> Gvk:
        """The kind that an object says it has, from its `apiVersion` and `kind`."""
        group, _, version = str(obj.get("apiVersion", "")).rpartition("/")
        return cls(group, version, str(obj.get("kind", "")))

    @property
    def api_version(self) -> str:
        """`group/version`, or only the version in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version


@dataclass(frozen=True, slots=True)
class FieldError:
    """One cause of a 422 answer: the path of the field, a machine-readable reason and a text for people."""

    field: str
    reason: Reason
    message: str

    def cause(self) -> dict[str, str]:
        """The error as it stands in `details.causes` of a Status."""
        return {"field": self.field, "message": self.message, "reason": self.reason}

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def summary(errors: Iterable[FieldError]) -> str:
    """The errors as the `message` of a Status gives them: bare when there is one, bracketed when there are several."""
    texts = list(dict.fromkeys(str(error) for error in errors))
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def shown(value: Any) -> str:
    """A value as an error message prints it: JSON, in one line."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


def invalid(field: str, value: Any, detail: str) -> FieldError:
    """The value has the right type, but breaks a rule."""
    return FieldError(field, "FieldValueInvalid", f"Invalid value: {shown(value)}: {detail}")


def wrong_type(field: str, value: Any, detail: str) -> FieldError:
    """The value is of another type than the schema asks for."""
    printed = f'"{_type_name(value)}"'
    return FieldError(field, "FieldValueTypeInvalid", f"Invalid value: {printed}: {detail}")


def required(field: str, detail: str = "") -> FieldError:
    """The field must be given."""
    return FieldError(
        field, "FieldValueRequired", f"Required value: {detail}" if detail else "Required value"
    )


def forbidden(field: str, detail: str) -> FieldError:
    """The field may not be given, or may not change, here."""
    return FieldError(field, "FieldValueForbidden", f"Forbidden: {detail}")


def duplicate(field: str, value: Any) -> FieldError:
    """The entry stands twice in a set or keyed list."""
    return FieldError(field, "FieldValueDuplicate", f"Duplicate value: {shown(value)}")


def not_supported(field: str, value: Any, supported: Iterable[Any]) -> FieldError:
    """The value is not one of those that an enumeration allows."""
    choices = ", ".join(shown(choice) for choice in supported)
    return FieldError(
        field, "FieldValueNotSupported", f"Unsupported value: {shown(value)}: supported values: {choices}"
    )


def too_long(field: str, most: int) -> FieldError:
    """The string is longer than `most` characters (bytes, where the API counts bytes)."""
    return FieldError(field, "FieldValueTooLong", f"Too long: may not be more than {most} bytes")


def too_many(field: str, count: int, most: int) -> FieldError:
    """The list or map has more than `most` entries."""
    return FieldError(field, "FieldValueTooMany", f"Too many: {count}: must have at most {most} items")


def not_found(field: str, value: Any) -> FieldError:
    """The value refers to something that is not there."""
    return FieldError(field, "FieldValueNotFound", f"Not found: {shown(value)}")


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"

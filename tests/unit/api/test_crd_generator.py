"""The generator refuses what has no structural form, and names the field."""

from __future__ import annotations

from typing import Any, ClassVar, Union

import pytest
from pydantic import Field

from tidewheel.api.crd import NotStructural, schema_of
from tidewheel.api.model import ApiModel, CelRule, CustomResource, Quantity


def kind_with(annotation: Any, default: Any = ...) -> type[CustomResource]:
    """A kind with one field of that type."""

    class Thing(CustomResource):
        """Thing is for tests."""

        plural: ClassVar[str] = "things"
        short_names: ClassVar[tuple[str, ...]] = ()
        printer_columns: ClassVar[tuple[Any, ...]] = ()
        field: annotation = Field(default, description="field is tested.")

    return Thing


class Inner(ApiModel):
    """Inner is nested."""

    size: int = Field(1, ge=1, le=3_000_000_000, description="size is a number.")

    cel_rules = (CelRule(rule="self.size < 5", message="size must be small"),)


class Loop(ApiModel):
    """Loop contains itself."""

    loop: Loop | None = Field(None, description="loop is itself.")


@pytest.mark.parametrize(
    "annotation",
    [
        pytest.param(Union[str, Inner], id="a union"),  # noqa: UP007
        pytest.param(str | bool, id="a union of scalars"),
        pytest.param(tuple[str, int], id="a tuple of unlike items"),
        pytest.param(float, id="a float"),
        pytest.param(Loop, id="a model that contains itself"),
        pytest.param(Any, id="anything"),
    ],
)
def test_what_has_no_structural_form_is_refused(annotation):
    with pytest.raises(NotStructural, match=r"Thing\.field"):
        schema_of(kind_with(annotation))


def field_schema(annotation: Any, default: Any = ...) -> dict[str, Any]:
    return schema_of(kind_with(annotation, default))["properties"]["field"]


def test_an_optional_field_is_the_field_without_null():
    assert field_schema(str | None, None) == {"type": "string", "description": "field is tested."}


def test_a_nested_model_is_inlined_with_its_rules_and_default():
    schema = field_schema(Inner, Inner())
    assert schema["default"] == {"size": 1}
    assert schema["properties"]["size"]["default"] == 1
    assert schema["properties"]["size"]["format"] == "int64"
    assert schema["x-kubernetes-validations"] == [{"rule": "self.size < 5", "message": "size must be small"}]


def test_a_quantity_is_an_integer_or_a_string_of_its_pattern():
    schema = field_schema(Quantity)
    assert schema["x-kubernetes-int-or-string"] is True
    assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}]
    assert schema["pattern"].startswith("^")


def test_a_field_with_a_default_is_not_required():
    schema = schema_of(kind_with(int, 3))
    assert "field" not in schema.get("required", [])
    assert schema_of(kind_with(int))["required"] == ["field"]

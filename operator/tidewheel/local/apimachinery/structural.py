"""What the API server refuses in a CustomResourceDefinition; also the linter of the CRDs that this project generates."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

from tidewheel.local.apimachinery import names
from tidewheel.local.apimachinery.decoding import decode_builtin
from tidewheel.local.apimachinery.fields import FieldError, Gvk, duplicate, invalid, not_supported, required
from tidewheel.local.apimachinery.structural_schema import schema_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidewheel.local.apimachinery.fields import Manifest

_CRD: Final = Gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition")
_COLUMN_TYPES: Final = ("boolean", "date", "integer", "number", "string")
_COLUMN_FORMATS: Final = ("", "byte", "date", "date-time", "double", "float", "int32", "int64", "password")
_APPROVAL: Final = "api-approved.kubernetes.io"
_JSON_PATH: Final = re.compile(r"(\.[A-Za-z0-9_-]+(\\\.[A-Za-z0-9_/-]+)*|\[[^\]]+\])+")


def crd_errors(crd: Manifest) -> list[FieldError]:
    """Everything that kube-apiserver refuses in a CRD, apart from its labels and the like.

    Raises:
        BadRequest: a field has a type that cannot be read at all, such as a number for `exclusiveMinimum`.
    """
    crd = deepcopy(crd)
    decode_builtin(crd, _CRD)
    spec = crd["spec"]
    found = spec.get("names") or {}
    name = crd.get("metadata", {}).get("name", "")
    errors: list[FieldError] = []
    if name != f"{found.get('plural', '')}.{spec.get('group', '')}":
        errors.append(invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
    errors += _group(crd, spec.get("group", ""))
    scope = spec.get("scope", "")
    if not scope:
        errors.append(required("spec.scope"))
    elif scope not in ("Cluster", "Namespaced"):
        errors.append(not_supported("spec.scope", scope, ("Cluster", "Namespaced")))
    if spec.get("preserveUnknownFields"):
        text = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"
        errors.append(invalid("spec.preserveUnknownFields", True, text))
    errors += _versions(spec.get("versions") or [])
    errors += _names(found)
    strategy = (spec.get("conversion") or {}).get("strategy", "None")
    if strategy not in ("None", "Webhook"):
        errors.append(not_supported("spec.conversion.strategy", strategy, ("None", "Webhook")))
    return errors


def _group(crd: Manifest, group: str) -> Iterator[FieldError]:
    if not group:
        yield required("spec.group")
        return
    for text in names.subdomain_complaints(group):
        yield invalid("spec.group", group, text)
    if "." not in group:
        yield invalid("spec.group", group, "should be a domain with at least one dot")
    annotations = crd.get("metadata", {}).get("annotations") or {}
    if group.endswith((".k8s.io", ".kubernetes.io")) and not annotations.get(_APPROVAL):
        text = 'protected groups must have approval annotation "api-approved.kubernetes.io", see https://github.com/kubernetes/enhancements/pull/1111'
        yield required(f"metadata.annotations[{_APPROVAL}]", text)


def _versions(versions: list[Manifest]) -> Iterator[FieldError]:
    if sum(bool(version.get("storage")) for version in versions) != 1:
        text = "must have exactly one version marked as storage version"
        yield invalid("spec.versions", [version.get("name") for version in versions], text)
    seen = [version.get("name") for version in versions]
    if len(set(seen)) != len(seen):
        yield invalid("spec.versions", seen, "must contain unique version names")
    for index, version in enumerate(versions):
        name = version.get("name", "")
        for text in names.label_1035_complaints(name):
            yield invalid(f"spec.versions[{index}].name", name, text)
    schemas = [(version.get("schema") or {}).get("openAPIV3Schema") for version in versions]
    # What all versions have in common stands above them in the API server's internal form, which errors speak of.
    if schemas and schemas[0] and all(schema == schemas[0] for schema in schemas):
        yield from schema_errors(schemas[0], "spec.validation.openAPIV3Schema")
    else:
        for index, schema in enumerate(schemas):
            path = f"spec.versions[{index}].schema.openAPIV3Schema"
            yield from schema_errors(schema, path) if schema else [required(path, "schemas are required")]
    yield from _shared(versions, "additionalPrinterColumns", _columns)
    yield from _shared(versions, "subresources", _subresources)


def _shared(versions: list[Manifest], field: str, check: Any) -> Iterator[FieldError]:
    values = [version.get(field) for version in versions]
    if values and all(value == values[0] for value in values):
        yield from check(values[0] or {}, f"spec.{field}")
        return
    for index, value in enumerate(values):
        yield from check(value or {}, f"spec.versions[{index}].{field}")


def _columns(columns: Any, path: str) -> Iterator[FieldError]:
    for index, column in enumerate(columns):
        where = f"{path}[{index}]"
        if not column.get("name"):
            yield required(f"{where}.name")
        if not column.get("type"):
            yield required(f"{where}.type", f"must be one of {','.join(_COLUMN_TYPES)}")
        elif column["type"] not in _COLUMN_TYPES:
            yield invalid(f"{where}.type", column["type"], f"must be one of {','.join(_COLUMN_TYPES)}")
        if column.get("format", "") not in _COLUMN_FORMATS:
            yield invalid(f"{where}.format", column["format"], f"must be one of {','.join(_COLUMN_FORMATS)}")
        json_path = column.get("jsonPath", "")
        if not json_path:
            yield required(f"{where}.JSONPath")
        elif not json_path.startswith(".") or not _JSON_PATH.fullmatch(json_path):
            yield invalid(f"{where}.JSONPath", json_path, "is an invalid JSONPath")


def _subresources(subresources: Manifest, path: str) -> Iterator[FieldError]:
    scale = subresources.get("scale")
    if scale is None:
        return
    for field, roots in (
        ("specReplicasPath", (".spec.",)),
        ("statusReplicasPath", (".status.",)),
        ("labelSelectorPath", (".spec.", ".status.")),
    ):
        value = scale.get(field, "")
        where = f"{path}.scale.{field}"
        if not value:
            if field != "labelSelectorPath":
                yield required(where)
        elif not value.startswith(roots):
            text = " or ".join(f"a json path under {root[:-1]}" for root in roots)
            yield invalid(where, value, f"should be {text}")
        elif not re.fullmatch(r"(\.[A-Za-z0-9_-]+)+", value):
            yield invalid(where, value, "should be a simple json path")


def _names(found: Manifest) -> Iterator[FieldError]:
    for field in ("plural", "kind", "singular", "listKind"):
        value = found.get(field, "")
        if not value:
            if field in ("plural", "kind"):
                yield required(f"spec.names.{field}")
            continue
        for text in names.label_1035_complaints(value.lower() if "ind" in field else value):
            yield invalid(f"spec.names.{field}", value, text)
    if found.get("kind") and found.get("kind") == found.get("listKind"):
        yield invalid("spec.names.listKind", found["listKind"], "kind and listKind may not be the same")
    for field in ("shortNames", "categories"):
        values = found.get(field) or ()
        for index, value in enumerate(values):
            for text in names.label_1035_complaints(value):
                yield invalid(f"spec.names.{field}[{index}]", value, text)
            if value in values[:index]:
                yield duplicate(f"spec.names.{field}[{index}]", value)

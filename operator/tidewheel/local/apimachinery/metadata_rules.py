"""What the API server asks of `metadata`, for every kind alike: names, labels, annotations, owners, finalizers, immutability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tidewheel.local.apimachinery import names
from tidewheel.local.apimachinery.fields import FieldError, Manifest, forbidden, invalid, required

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MOST_ANNOTATION_BYTES: Final = 256 * 1024
_MOST_GENERATED_PREFIX: Final = 63 - 5
_IMMUTABLE: Final = (
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_STANDARD_FINALIZERS: Final = frozenset({"kubernetes", "orphan", "foregroundDeletion"})


def validate_metadata(
    metadata: Manifest,
    *,
    namespaced: bool,
    name_complaints: Callable[[str], list[str]] = names.subdomain_complaints,
) -> list[FieldError]:
    """Check the metadata of an object, new or old."""
    errors: list[FieldError] = []
    prefix = metadata.get("generateName")
    if prefix:
        # A generated name ends with random letters, so the prefix may end with a dash or a dot.
        stem = prefix[:-1] + "a" if prefix[-1] in "-." else prefix
        errors += [invalid("metadata.generateName", prefix, text) for text in name_complaints(stem)]
    name = metadata.get("name")
    if not name:
        errors.append(required("metadata.name", "name or generateName is required"))
    else:
        errors += [invalid("metadata.name", name, text) for text in name_complaints(name)]
    namespace = metadata.get("namespace")
    if namespaced:
        if not namespace:
            errors.append(required("metadata.namespace"))
        else:
            errors += [
                invalid("metadata.namespace", namespace, text) for text in names.label_complaints(namespace)
            ]
    elif namespace:
        errors.append(forbidden("metadata.namespace", "not allowed on this type"))
    if metadata.get("labels"):
        errors += validate_labels(metadata["labels"], "metadata.labels")
    if metadata.get("annotations"):
        errors += validate_annotations(metadata["annotations"], "metadata.annotations")
    errors += _validate_owners(metadata.get("ownerReferences") or ())
    for finalizer in metadata.get("finalizers") or ():
        errors += [
            invalid("metadata.finalizers", finalizer, text)
            for text in names.qualified_name_complaints(finalizer)
        ]
        if "/" not in finalizer and finalizer not in _STANDARD_FINALIZERS:
            text = "name is neither a standard finalizer name nor is it fully qualified"
            errors.append(invalid("metadata.finalizers", finalizer, text))
    return errors


def validate_metadata_update(new: Manifest, old: Manifest) -> list[FieldError]:
    """Check what may not change in the metadata, and the finalizers while an object is being deleted."""
    errors: list[FieldError] = []
    if old.get("deletionTimestamp"):
        kept = old.get("finalizers") or ()
        added = [each for each in new.get("finalizers") or () if each not in kept]
        if added:
            listed = ", ".join(f'"{each}"' for each in added)
            text = f"no new finalizers can be added if the object is being deleted, found new finalizers []string{{{listed}}}"
            errors.append(forbidden("metadata.finalizers", text))
    errors += [
        invalid(f"metadata.{name}", new.get(name), "field is immutable")
        for name in _IMMUTABLE
        if new.get(name) != old.get(name)
    ]
    return errors


def validate_labels(labels: Mapping[str, Any], field: str) -> list[FieldError]:
    """Check the keys and values of labels."""
    errors: list[FieldError] = []
    for key, value in labels.items():
        errors += [invalid(field, key, text) for text in names.qualified_name_complaints(key)]
        errors += [invalid(field, value, text) for text in names.label_value_complaints(value)]
    return errors


def validate_annotations(annotations: Mapping[str, Any], field: str) -> list[FieldError]:
    """Check the keys of annotations, and the size of all together."""
    errors: list[FieldError] = []
    size = 0
    for key, value in annotations.items():
        errors += [invalid(field, key, text) for text in names.qualified_name_complaints(key.lower())]
        size += len(key) + len(value)
    if size > _MOST_ANNOTATION_BYTES:
        text = f"Too long: may not be more than {_MOST_ANNOTATION_BYTES} bytes"
        errors.append(FieldError(field, "FieldValueTooLong", text))
    return errors


def _validate_owners(owners: Any) -> list[FieldError]:
    field = "metadata.ownerReferences"
    errors: list[FieldError] = []
    for index, owner in enumerate(owners):
        where = f"{field}[{index}]"
        if not owner.get("apiVersion"):
            errors.append(invalid(f"{where}.apiVersion", "", "version must not be empty"))
        errors += [
            invalid(f"{where}.{name}", "", "must not be empty")
            for name in ("kind", "name", "uid")
            if not owner.get(name)
        ]
    controllers = [owner for owner in owners if owner.get("controller")]
    if len(controllers) > 1:
        text = (
            'Only one reference can have Controller set to true. Found "true" in references for '
            f"{controllers[0].get('kind')}/{controllers[0].get('name')} and "
            f"{controllers[1].get('kind')}/{controllers[1].get('name')}"
        )
        errors.append(invalid(field, None, text))
    return errors

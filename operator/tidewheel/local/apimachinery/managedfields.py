"""Who owns which field: what an update or a server-side apply leaves in `metadata.managedFields`, and conflicts between appliers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

from tidewheel.local.apimachinery import fieldsets, fieldwalks, last_applied
from tidewheel.local.apimachinery.fields import BadRequest
from tidewheel.local.apimachinery.fieldsets import FieldSet
from tidewheel.local.apimachinery.pruning import unknown_paths

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidewheel.local.apimachinery.fields import Gvk, Manifest
    from tidewheel.local.apimachinery.schema import Schema

# Fields of the metadata that nobody owns.
_UNOWNED_METADATA: Final = tuple(
    f"f:{name}"
    for name in (
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    )
)
# Owns what an object held before its first apply, when nobody was known to own it.
_BEFORE_FIRST_APPLY: Final = "before-first-apply"


class ApplyConflict(Exception):
    """An apply would change fields that other managers own; the API answers 409.

    Attributes:
        causes: what stands in `details.causes` of the Status.
    """

    def __init__(self, conflicts: Iterable[tuple[str, str]]) -> None:
        """`conflicts` holds the printed manager and the path of each field."""
        found = sorted(conflicts)
        self.causes = [
            {"field": path, "message": f"conflict with {manager}", "reason": "FieldManagerConflict"}
            for manager, path in found
        ]
        if len(found) == 1:
            text = f"1 conflict: conflict with {found[0][0]}: {found[0][1]}"
        else:
            lines: list[str] = []
            for manager in dict.fromkeys(manager for manager, _ in found):
                lines.append(f"conflicts with {manager}:")
                lines.extend(f"- {path}" for owner, path in found if owner == manager)
            text = f"{len(found)} conflicts: " + "\n".join(lines)
        super().__init__(f"Apply failed with {text}")


class UntypedPatch(Exception):
    """An applied object does not fit the schema; the API answers 500 with this message and no reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    manager: str
    operation: str
    api_version: str
    subresource: str
    time: str | None
    fields: FieldSet

    @classmethod
    def read(cls, raw: Manifest) -> Self:
        return cls(
            manager=raw.get("manager", ""),
            operation=raw.get("operation", "Update"),
            api_version=raw.get("apiVersion", ""),
            subresource=raw.get("subresource", ""),
            time=raw.get("time"),
            fields=raw.get("fieldsV1") or {},
        )

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """Two entries with the same identity are one; an applier stays the same across versions."""
        version = "" if self.operation == "Apply" else self.api_version
        return (self.manager, self.operation, version, self.subresource)

    @property
    def order(self) -> tuple[str, str, str, str, str]:
        return (self.operation, self.time or "", self.manager, self.api_version, self.subresource)

    def printed(self) -> str:
        """The manager as conflicts name it."""
        text = f'"{self.manager}"'
        if self.subresource:
            text += f' with subresource "{self.subresource}"'
        return f"{text} using {self.api_version}" if self.operation == "Update" else text

    def written(self) -> Manifest:
        raw: Manifest = {"apiVersion": self.api_version, "fieldsType": "FieldsV1", "fieldsV1": self.fields}
        raw["manager"] = self.manager
        raw["operation"] = self.operation
        if self.subresource:
            raw["subresource"] = self.subresource
        if self.time is not None:
            raw["time"] = self.time
        return raw


def reset_fields(gvk: Gvk, subresource: str, *, has_status: bool) -> tuple[str, ...]:
    """The dotted fields that an endpoint ignores, so that nobody comes to own them through it."""
    if not has_status:
        return ()
    if subresource == "":
        return ("status",)
    if subresource != "status":
        return ()
    match gvk.group, gvk.kind:
        case "", "Pod":
            return ("spec", "metadata.deletionTimestamp", "metadata.ownerReferences")
        case "", "Node" | "Service" | "Namespace" | "PersistentVolume" | "PersistentVolumeClaim":
            return ("spec",)
        case "apps" | "batch", _:
            return ("spec", "metadata.labels")
    return ("spec", "metadata")


def track_update(
    old: Manifest,
    new: Manifest,
    *,
    manager: str,
    api_version: str,
    subresource: str,
    schema: Schema,
    now: str | None,
    reset: tuple[str, ...] = (),
) -> list[Manifest]:
    """The managed fields of `new` after `manager` replaced `old` by it (a create, update or non-apply patch).

    The manager comes to own what it added or changed, the former owners lose that, and everybody loses what was
    removed. Its time moves only when it came to own something. An object without managed fields gets none by an update.

    Args:
        old: the object before; for a create, one without a uid.
        now: the time in RFC 3339, or None to write none (as the scale subresource does).
        reset: what `reset_fields` says about the endpoint.
    """
    entries = _current_entries(old, new, subresource)
    if not entries and (old.get("metadata") or {}).get("uid"):
        return []
    added, modified, removed = (_without_reset(part, reset) for part in _compare(old, new, schema))
    taken = _strip(fieldsets.union(added, modified))
    mine = _Entry(
        manager=manager,
        operation="Update",
        api_version=api_version,
        subresource=subresource,
        time=now,
        fields=taken,
    )
    kept: list[_Entry] = []
    if added or modified or removed:
        lost = fieldsets.union(fieldsets.union(added, modified), removed)
        for entry in entries:
            left = fieldsets.difference(entry.fields, lost if entry.identity != mine.identity else removed)
            if taken and entry.identity == mine.identity:
                mine = replace(mine, fields=fieldsets.union(left, taken))
            elif left:
                kept.append(entry if left == entry.fields else replace(entry, fields=left))
    else:
        kept = entries
    if taken:
        kept.append(mine)
    return _written(kept)


def server_side_apply(
    live: Manifest | None,
    applied: Manifest,
    *,
    manager: str,
    force: bool,
    api_version: str,
    subresource: str,
    schema: Schema,
    now: str | None,
    reset: tuple[str, ...] = (),
) -> Manifest:
    """The object after `manager` applied its intent; `live` itself when nothing changed, None stands for no object yet.

    Fields that the manager gave up, and that nobody else owns, are removed. The result has its managed fields set and
    shares unchanged parts with its sources; it still has to be decoded and defaulted.

    Raises:
        ApplyConflict: the apply changes fields that others own, and is not forced.
        BadRequest: the applied object carries managed fields.
        UntypedPatch: the applied object does not fit the schema.
    """
    if (applied.get("metadata") or {}).get("managedFields"):
        raise BadRequest("metadata.managedFields must be nil")
    _refuse_undeclared(applied, schema)
    base = (
        live if live is not None else {"apiVersion": applied.get("apiVersion"), "kind": applied.get("kind")}
    )
    before = _bare(base)
    entries = [_Entry.read(raw) for raw in (base.get("metadata") or {}).get("managedFields") or ()]
    if live is not None and not entries:
        entries = _owner_of_all(before, api_version, schema, now)
    try:
        claimed = _strip(_without_reset(fieldwalks.owned_by_applying(applied, schema), reset))
        merged = fieldwalks.merge(before, applied, schema)
    except fieldwalks.DuplicateItem as error:
        raise _untyped(applied, str(error)) from error
    mine = _Entry(
        manager=manager,
        operation="Apply",
        api_version=api_version,
        subresource=subresource,
        time=now,
        fields=claimed,
    )
    former = next((entry for entry in entries if entry.identity == mine.identity), None)
    others = [entry for entry in entries if entry.identity != mine.identity]
    after = merged if former is None else _give_up(merged, former.fields, [*others, mine], schema)
    added, modified, removed = (
        _without_reset(part, reset) for part in fieldwalks.compare(before, after, schema)
    )
    forgiven = last_applied.forgiven_fields(live, manager, schema)
    others = _settle(others, fieldsets.union(added, modified), removed, None if force else forgiven)
    if before == after and former is not None and former.fields == claimed:
        return base
    managers = [*others, mine] if claimed else others
    after = dict(last_applied.remember_applied(after, applied, manager, subresource))
    metadata = dict(after.get("metadata") or {})
    written = _written(managers)
    if written:
        metadata["managedFields"] = written
    after["metadata"] = metadata
    return after


def is_unchanged(old: Manifest, new: Manifest) -> bool:
    """Whether a write changes nothing but times of managed fields, and so must not be stored at all."""
    if old == new:
        return True
    if _bare(old) != _bare(new):
        return False
    mine = [{**entry, "time": None} for entry in old["metadata"].get("managedFields") or ()]
    theirs = [{**entry, "time": None} for entry in new["metadata"].get("managedFields") or ()]
    return len(mine) == len(theirs) and all(entry in theirs for entry in mine)


def _settle(
    others: list[_Entry], changed: FieldSet, removed: FieldSet, forgiven: FieldSet | None
) -> list[_Entry]:
    """The other managers after an apply: they lose what it changed by right, and what it removed.

    `forgiven` are the fields that it may take from others; None stands for all.
    """
    conflicts: list[tuple[str, str]] = []
    is_forgiven = True
    settled: list[_Entry] = []
    for entry in others:
        contested = fieldsets.intersection(entry.fields, changed)
        conflicts.extend((entry.printed(), path) for path in fieldsets.paths(contested))
        is_forgiven = is_forgiven and (forgiven is None or not fieldsets.difference(contested, forgiven))
        left = fieldsets.difference(fieldsets.difference(entry.fields, contested), removed)
        if left:
            settled.append(entry if left == entry.fields else replace(entry, fields=left))
    if not is_forgiven:
        raise ApplyConflict(conflicts)
    return settled


def _give_up(merged: Manifest, last: FieldSet, owners: list[_Entry], schema: Schema) -> Manifest:
    """Remove what the manager owned after its last apply, unless an owner, of whom it is the last, owns it now."""
    if not fieldsets.difference(last, owners[-1].fields):
        return merged  # it claims all that it claimed before
    last = fieldwalks.with_named_fields(last, schema)
    pruned = fieldwalks.remove(merged, last, schema) or {}
    owned: FieldSet = {}
    for entry in owners:
        owned = fieldsets.union(owned, entry.fields)
    everything = fieldwalks.with_named_fields(fieldwalks.owned_by_applying(merged, schema), schema)

    def named(value: Manifest) -> FieldSet:
        return fieldwalks.with_named_fields(fieldwalks.owned_by_applying(value, schema), schema)

    wanted = fieldsets.union(named(pruned), fieldwalks.with_named_fields(owned, schema))
    pruned = fieldwalks.remove(merged, fieldsets.difference(everything, wanted), schema) or {}
    # Only what this manager owned may go; what nobody owned stays.
    gone = fieldsets.intersection(fieldsets.difference(everything, named(pruned)), last)
    result: Manifest = fieldwalks.remove(merged, gone, schema) or {}
    return result


def _owner_of_all(obj: Manifest, api_version: str, schema: Schema, now: str | None) -> list[_Entry]:
    empty = {"apiVersion": obj.get("apiVersion"), "kind": obj.get("kind")}
    fields = _strip(fieldwalks.compare(empty, obj, schema).added)
    if not fields:
        return []
    return [
        _Entry(
            manager=_BEFORE_FIRST_APPLY,
            operation="Update",
            api_version=api_version,
            subresource="",
            time=now,
            fields=fields,
        )
    ]


def _current_entries(old: Manifest, new: Manifest, subresource: str) -> list[_Entry]:
    """The entries that a request sent, if it may and did; else those of the live object."""
    sent = (new.get("metadata") or {}).get("managedFields")
    if not subresource and sent is not None:
        if sent in ([], [{}]):
            return []  # the documented way to start over
        if all(isinstance(raw, dict) and raw.get("fieldsType") == "FieldsV1" for raw in sent):
            return [_Entry.read(raw) for raw in sent]
    return [_Entry.read(raw) for raw in (old.get("metadata") or {}).get("managedFields") or ()]


def _compare(old: Manifest, new: Manifest, schema: Schema) -> fieldwalks.Comparison:
    return fieldwalks.compare(_bare(old), _bare(new), schema)


def _bare(obj: Manifest) -> Manifest:
    """The object without its managed fields; it shares all else."""
    metadata = obj.get("metadata")
    if not metadata or "managedFields" not in metadata:
        return obj
    return {**obj, "metadata": {key: value for key, value in metadata.items() if key != "managedFields"}}


def _strip(fields: FieldSet) -> FieldSet:
    """Without the fields that nobody owns."""
    stripped = {
        key: node for key, node in fields.items() if key not in ("f:apiVersion", "f:kind", "f:metadata")
    }
    metadata = fields.get("f:metadata")
    if metadata:
        owned = {key: node for key, node in metadata.items() if key != "." and key not in _UNOWNED_METADATA}
        if owned:
            stripped["f:metadata"] = owned
    return stripped


def _without_reset(fields: FieldSet, reset: tuple[str, ...]) -> FieldSet:
    for path in reset:
        fields = fieldsets.without_subtree(fields, tuple(path.split(".")))
    return fields


def _written(entries: list[_Entry]) -> list[Manifest]:
    return [entry.written() for entry in sorted(entries, key=lambda entry: entry.order)]


def _refuse_undeclared(applied: Manifest, schema: Schema) -> None:
    unknown = unknown_paths(applied, schema)
    if unknown:
        raise _untyped(applied, f".{unknown[0]}: field not declared in schema")


def _untyped(applied: Manifest, detail: str) -> UntypedPatch:
    metadata: Any = applied.get("metadata") or {}
    name = "/".join(filter(None, (metadata.get("namespace"), metadata.get("name"))))
    where = f"{name}; {applied.get('apiVersion')}, Kind={applied.get('kind')}"
    return UntypedPatch(f"failed to create typed patch object ({where}): {detail}")

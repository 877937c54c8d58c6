"""What `tidewheel plan` prints: the operator's own next step for a manifest, in a cluster that is seen, given or empty.

The very same observing, planning and judging as in the operator; nothing is written anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tidewheel.api.crd import KINDS, crd_of
from tidewheel.api.manifest import (
    CONFIG_MAPS,
    NODES,
    PD_SERVICE_SCALERS,
    PD_SERVICES,
    PDBS,
    PODS,
    SERVICES,
    Manifest,
    Resource,
)
from tidewheel.api.meta import LABEL_SERVICE
from tidewheel.controllers.cache import Cache
from tidewheel.controllers.changes import Changes, Judge, Memory
from tidewheel.controllers.controller import Key
from tidewheel.controllers.pdservice import PDServiceController
from tidewheel.controllers.scaler import PDServiceScalerController
from tidewheel.kube.client import HttpApi
from tidewheel.kube.connection import connect
from tidewheel.local.apimachinery.defaulting import apply_defaults
from tidewheel.local.apimachinery.pruning import unknown_fields
from tidewheel.local.apimachinery.schema import crd_schema
from tidewheel.local.apimachinery.validation import validate
from tidewheel.planning.decisions import shorten
from tidewheel.planning.plan import Plan
from tidewheel.planning.settings import ServiceDefaults

#: What the operator looks at, and what `--observed` may hold.
_SEEN: tuple[Resource, ...] = (
    PD_SERVICES,
    PD_SERVICE_SCALERS,
    PODS,
    CONFIG_MAPS,
    SERVICES,
    PDBS,
    NODES,
)
_OURS = (PD_SERVICES, PD_SERVICE_SCALERS)
_BY_KIND = {(one.api_version, one.kind): one for one in _SEEN}
_SCHEMAS = {
    kind.__name__: crd_schema(crd_of(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    for kind in KINDS
}


class CannotPreview(Exception):
    """A file is no manifest or no observed state, or holds what the API server would refuse; the text says where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The next step of one object."""

    kind: str
    key: Key
    plan: Plan
    #: What of the plan is not so already.
    changes: Changes

    @property
    def does(self) -> tuple[str, ...]:
        """Each change in one line."""
        return tuple(self._lines())

    def _lines(self) -> Iterator[str]:
        for write in self.changes.writes:
            verb = "create" if write.why == "missing" else "apply"
            yield f"{verb} {write.resource.kind} {write.manifest['metadata']['name']}{_labels(write.manifest)}"
        for deletion in self.changes.deletions:
            yield f"delete {deletion.resource.kind} {deletion.name}: {deletion.reason}"
        for annotation in self.changes.annotations:
            yield f"annotate {annotation.resource.kind} {annotation.name}, so that its kubelet reads the new map at once"

    def to_wire(self) -> dict[str, Any]:
        """As JSON."""
        status = self.plan.status or {}
        return {
            "kind": self.kind,
            "namespace": self.key.namespace,
            "name": self.key.name,
            "changes": list(self.does),
            "events": [f"{note.reason}: {note.message}" for note in self.plan.events],
            "conditions": [
                {key: one[key] for key in ("type", "status", "reason", "message")}
                for one in status.get("conditions", ())
            ],
            "scenarios": status.get("scenarios", []),
            "lookAgainInSeconds": self.plan.look_again_in,
        }

    def to_text(self) -> str:
        """For people."""
        told = self.to_wire()
        lines = [f"{self.kind} {self.key}"]
        lines += [f"  {line}" for line in self.does or ("nothing would change",)]
        lines += ["  because"] if self.plan.events else []
        lines += [f"    {shorten(event, 400)}" for event in told["events"]]
        lines += ["  and then says"] if told["conditions"] else []
        for one in told["conditions"]:
            lines.append(f"    {one['type']}={one['status']} {one['reason']}: {shorten(one['message'], 400)}")
        for one in told["scenarios"]:
            pods = f"{one['prefill']['summary']} prefill, {one['decode']['summary']} decode"
            groups = f"{one['readyGroups']}/{one['groups']} groups"
            lines.append(f"    scenario {one['name']}: {groups}, {pods} ({one['reason']})")
        if self.plan.look_again_in is not None:
            lines.append(f"  and looks again in {self.plan.look_again_in:.0f} s, or when something happens")
        return "\n".join(lines)


def previews(
    manifests: Sequence[Manifest],
    observed: Iterable[Manifest],
    *,
    namespace: str,
    now: datetime,
    defaults: ServiceDefaults,
) -> list[Preview]:
    """What the operator would do if these manifests were applied to what is observed.

    Args:
        manifests: PDServices and PDServiceScalers.
        observed: objects of the cluster, as the API server gives them.
        namespace: of manifests that name none.
        now: the time.
        defaults: the operator's.

    Raises:
        CannotPreview: see there.
    """
    cache = Cache()
    for one in observed:
        resource = _resource(one)
        if resource in _OURS or resource == NODES or LABEL_SERVICE in one["metadata"].get("labels", {}):
            cache.put(resource, one)
    keys = [_apply(cache, manifest, namespace=namespace, now=now) for manifest in manifests]
    # Without any node in the state nothing is known of nodes; with some, those that are missing are gone.
    knows_nodes = any(True for _ in cache.names(NODES))
    services = PDServiceController(defaults, watches_nodes=knows_nodes)
    found = []
    for resource, key in keys:
        controller = services if resource == PD_SERVICES else PDServiceScalerController()
        plan = controller.plan(key, cache, now)
        live = cache.get(resource, *key)
        if plan is None or live is None:
            raise CannotPreview(f"{resource.kind} {key} vanished from the given state")
        judge = Judge(
            kind=resource,
            children={(child.api_version, child.kind): child for child in controller.children},
            cache=cache,
            most_changes=1_000_000,
        )
        changes = judge.changes(key, live["metadata"]["uid"], plan, Memory(), 0.0)
        found.append(Preview(kind=resource.kind, key=key, plan=plan, changes=changes))
    return found


def read_manifests(file: Path) -> list[Manifest]:
    """The PDServices and PDServiceScalers of a YAML file; it may hold several documents.

    Raises:
        CannotPreview: see there.
    """
    try:
        documents = [one for one in yaml.safe_load_all(file.read_text()) if one is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CannotPreview(f"{file}: {error}") from error
    ours = [one for one in documents if isinstance(one, dict) and one.get("kind") in _SCHEMAS]
    if not ours:
        raise CannotPreview(f"{file} holds neither a PDService nor a PDServiceScaler")
    return ours


def read_observed(file: Path) -> list[Manifest]:
    """The objects of `kubectl get pds,pdss,pods,configmaps,services,pdb,nodes -o json`.

    Raises:
        CannotPreview: see there.
    """
    try:
        state = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CannotPreview(f"{file}: {error}") from error
    items = state.get("items") if isinstance(state, dict) and state.get("kind") == "List" else state
    if not isinstance(items, list) or not all(isinstance(one, dict) and "metadata" in one for one in items):
        kinds = ",".join(one.plural for one in _SEEN)
        raise CannotPreview(f"{file} is no list of objects; write it with `kubectl get {kinds} -o json`")
    return [one for one in items if (one.get("apiVersion"), one.get("kind")) in _BY_KIND]


async def observe(kubeconfig: Path | None, namespace: str | None) -> tuple[list[Manifest], str]:
    """What there is in a namespace of a cluster, and the namespace: the kubeconfig's unless another is asked for.

    Raises:
        ApiError: it cannot be read.
        NoConnection: there is no such cluster.
    """
    connection = connect(kubeconfig)
    chosen = namespace or connection.namespace
    found: list[Manifest] = []
    async with HttpApi(connection, user_agent="tidewheel-plan") as api:
        for resource in _SEEN:
            selector = None if resource in _OURS or resource == NODES else LABEL_SERVICE
            listing = await api.list(
                resource, chosen if resource.namespaced else None, label_selector=selector
            )
            found += [
                {"apiVersion": resource.api_version, "kind": resource.kind, **item} for item in listing.items
            ]
    return found, chosen


def _apply(cache: Cache, manifest: Manifest, *, namespace: str, now: datetime) -> tuple[Resource, Key]:
    """Puts a manifest into the cache as the API server would: with its defaults, over what is there."""
    resource = _resource(manifest)
    metadata = manifest.get("metadata") or {}
    name = metadata.get("name")
    if not isinstance(name, str):
        raise CannotPreview(f"a {resource.kind} has no metadata.name")
    key = Key(metadata.get("namespace") or namespace, name)
    live = cache.get(resource, *key)
    new: Manifest = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {
            **metadata,
            "namespace": key.namespace,
            "uid": "not-yet-applied",
            "creationTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "generation": 1,
            "resourceVersion": "1",
        },
        "spec": manifest.get("spec"),
    }
    if live is not None:
        for field in ("uid", "creationTimestamp", "resourceVersion"):
            if field in live["metadata"]:
                new["metadata"][field] = live["metadata"][field]
        new["metadata"]["generation"] = live["metadata"].get("generation", 0) + (
            new["spec"] != live.get("spec")
        )
        new |= {"status": live["status"]} if "status" in live else {}
    schema = _SCHEMAS[resource.kind]
    complaints = [f"{path}: unknown field" for path in unknown_fields(new, schema)]
    apply_defaults(new, schema)
    complaints += [f"{error.field}: {error.message}" for error in validate(new, schema, live)]
    if complaints:
        raise CannotPreview(f"{resource.kind} {key} would be refused: {'; '.join(complaints)}")
    cache.put(resource, new, rewound=True)
    return resource, key


def _resource(manifest: Manifest) -> Resource:
    kind = (str(manifest.get("apiVersion")), str(manifest.get("kind")))
    if kind not in _BY_KIND:
        raise CannotPreview(f"{kind[0]} {kind[1]} is no kind that the operator looks at")
    return _BY_KIND[kind]


def _labels(manifest: Manifest) -> str:
    """What kind of pod it is."""
    if manifest["kind"] != "Pod":
        return ""
    labels = manifest["metadata"]["labels"]
    return f" ({', '.join(str(labels[one]) for one in _TOLD if one in labels)})"


_TOLD = ("tidewheel.dev/role", "tidewheel.dev/scenario")

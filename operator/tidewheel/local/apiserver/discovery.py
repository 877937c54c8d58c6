"""Discovery documents: which groups, versions and resources there are, in the old and the aggregated form."""

from __future__ import annotations

from typing import Any

from tidewheel.local.apiserver.registry import Registry, Resource, Subresource

Manifest = dict[str, Any]

VERSION: Manifest = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    # A client must be able to see that this is not the real thing.
    "gitVersion": "v1.36.2+tidewheel-local",
    "gitCommit": "",
    "gitTreeState": "",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "none",
    "platform": "linux/amd64",
}

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


def core_versions(address: str) -> Manifest:
    """`GET /api`."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def group_list(registry: Registry) -> Manifest:
    """`GET /apis`."""
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [_group(name, versions) for name, versions in registry.groups().items()],
    }


def group(registry: Registry, name: str) -> Manifest | None:
    """`GET /apis/<group>`, or None when there is no such group."""
    versions = registry.groups().get(name)
    return None if versions is None else {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)}


def resource_list(registry: Registry, group: str, version: str) -> Manifest | None:
    """`GET /api/v1` or `GET /apis/<group>/<version>`, or None when nothing is served there."""
    resources = registry.in_version(group, version)
    if not resources:
        return None
    shown: list[Manifest] = []
    for resource in resources:
        shown.append(_resource(resource))
        shown.extend(_subresource(resource, below) for below in resource.subresources)
    if not group:
        # The oldest document of the API never learnt to say its own version.
        return {"kind": "APIResourceList", "groupVersion": version, "resources": shown}
    group_version = f"{group}/{version}"
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": shown}


def aggregated(registry: Registry, *, core: bool) -> Manifest:
    """All of discovery in one document: the core group for `/api`, the named ones for `/apis`."""
    groups = {"": ["v1"]} if core else registry.groups()
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": [
            {
                "metadata": {"name": name} if name else {},
                "versions": [
                    {
                        "version": version,
                        "resources": [
                            _aggregated_resource(one) for one in registry.in_version(name, version)
                        ],
                        "freshness": "Current",
                    }
                    for version in versions
                ],
            }
            for name, versions in groups.items()
        ],
    }


def _group(name: str, versions: list[str]) -> Manifest:
    named = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": named, "preferredVersion": named[0]}


def _resource(resource: Resource) -> Manifest:
    shown: Manifest = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        shown["shortNames"] = list(resource.short_names)
    if resource.categories:
        shown["categories"] = list(resource.categories)
    if resource.is_stored:
        shown["storageVersionHash"] = resource.storage_version_hash
    return shown


def _subresource(resource: Resource, below: Subresource) -> Manifest:
    shown: Manifest = {
        "name": f"{resource.plural}/{below.name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": below.kind,
        "verbs": list(below.verbs),
    }
    if below.group:
        shown |= {"group": below.group, "version": below.version}
    return shown


def _aggregated_resource(resource: Resource) -> Manifest:
    # The real server leaves group and version of a built-in kind empty: they are those of the document.
    group, version = (resource.group, resource.version) if resource.custom else ("", "")
    shown: Manifest = {
        "resource": resource.plural,
        "responseKind": {"group": group, "version": version, "kind": resource.kind},
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        shown["shortNames"] = list(resource.short_names)
    if resource.categories:
        shown["categories"] = list(resource.categories)
    if resource.subresources:
        shown["subresources"] = [
            {
                "subresource": below.name,
                "responseKind": {
                    "group": below.group or group,
                    "version": below.version or version,
                    "kind": below.kind,
                },
                "verbs": list(below.verbs),
            }
            for below in resource.subresources
        ]
    return shown

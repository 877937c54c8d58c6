"""All that the operator may do in a cluster: the chart's roles and the security page are checked against this table."""

from __future__ import annotations

from dataclasses import dataclass

from tidewheel.api.manifest import (
    CONFIG_MAPS,
    EVENTS,
    LEASES,
    NODES,
    PD_SERVICE_SCALERS,
    PD_SERVICES,
    PDBS,
    PODS,
    SERVICES,
)

_READ = ("get", "list", "watch")
#: Server-side apply of an object that is not there yet needs `create` beside `patch`.
_OWN = (*_READ, "create", "patch", "delete")


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """One rule of a role, and what it is for."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    reason: str


#: In every watched namespace, or in the whole cluster.
IN_WATCHED_NAMESPACES: tuple[Permission, ...] = (
    Permission(
        group=PD_SERVICES.group,
        resource=PD_SERVICES.plural,
        verbs=_READ,
        reason="see what is asked for",
    ),
    Permission(
        group=PD_SERVICES.group,
        resource=f"{PD_SERVICES.plural}/status",
        verbs=("patch",),
        reason="say what is",
    ),
    Permission(
        group=PD_SERVICES.group,
        resource=f"{PD_SERVICES.plural}/finalizers",
        verbs=("update",),
        reason="own children where OwnerReferencesPermissionEnforcement is on; no finalizer is ever set",
    ),
    Permission(
        group=PD_SERVICE_SCALERS.group,
        resource=PD_SERVICE_SCALERS.plural,
        verbs=_READ,
        reason="see how many pods autoscalers ask for",
    ),
    Permission(
        group=PD_SERVICE_SCALERS.group,
        resource=f"{PD_SERVICE_SCALERS.plural}/status",
        verbs=("patch",),
        reason="tell autoscalers how many there are",
    ),
    Permission(group=PODS.group, resource=PODS.plural, verbs=_OWN, reason="run gateways and workers"),
    Permission(
        group=CONFIG_MAPS.group,
        resource=CONFIG_MAPS.plural,
        verbs=_OWN,
        reason="publish rank tables and routes",
    ),
    Permission(group=SERVICES.group, resource=SERVICES.plural, verbs=_OWN, reason="put one address in front"),
    Permission(
        group=PDBS.group, resource=PDBS.plural, verbs=_OWN, reason="keep a drain from taking a role at once"
    ),
    Permission(
        group=EVENTS.group,
        resource=EVENTS.plural,
        verbs=("get", "create", "patch"),
        reason="tell people why, and count what happens again",
    ),
)

#: In the whole cluster, for an operator that watches all of it: nodes are in no namespace.
IN_WHOLE_CLUSTER: tuple[Permission, ...] = (
    Permission(
        group=NODES.group, resource=NODES.plural, verbs=_READ, reason="notice lost nodes and sick devices"
    ),
)

#: In the operator's own namespace only.
IN_RELEASE_NAMESPACE: tuple[Permission, ...] = (
    Permission(
        group=LEASES.group,
        resource=LEASES.plural,
        verbs=("get", "create", "update"),
        reason="agree which replica acts",
    ),
)

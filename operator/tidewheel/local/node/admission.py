"""Which pods this agent refuses at once, and why: what a process without a namespace of its own cannot be given."""

from __future__ import annotations

from tidewheel.api.manifest import Manifest

_VOLUMES = (
    "configMap",
    "secret",
    "downwardAPI",
    "projected",
    "emptyDir",
    "hostPath",
    "persistentVolumeClaim",
)


def refusal(pod: Manifest) -> str | None:
    """Why the pod cannot run here, None if it can."""
    spec = pod["spec"]
    for volume in spec.get("volumes") or []:
        if not any(kind in volume for kind in _VOLUMES):
            kinds = ", ".join(key for key in volume if key != "name") or "none"
            return (
                f"volume {volume['name']!r} has type {kinds}; this agent offers {', '.join(_VOLUMES)}, "
                "so choose one of them or schedule the pod on a real node"
            )
    for container in (*(spec.get("initContainers") or []), *spec["containers"]):
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "grpc" in (container.get(kind) or {}):
                return (
                    f"{kind} of container {container['name']!r} uses grpc, which this agent cannot probe; "
                    "use httpGet, tcpSocket or exec"
                )
    return None

"""The restricted Pod Security Standard as a function from a pod spec to what it violates."""

from __future__ import annotations

from typing import Any

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def restricted_violations(spec: dict[str, Any]) -> list[str]:
    """What the standard forbids in `spec`, one phrase each."""
    pod = spec.get("securityContext") or {}
    found = [f"{field} is set" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    for volume in spec.get("volumes") or []:
        if not volume.keys() & _VOLUMES:
            found.append(f"volume {volume['name']} is of a forbidden type")
    for container in (*(spec.get("initContainers") or []), *spec["containers"]):
        found += [f"container {container['name']}: {what}" for what in _container(container, pod)]
    return found


def _container(container: dict[str, Any], pod: dict[str, Any]) -> list[str]:
    own = container.get("securityContext") or {}
    merged = {**pod, **own}
    capabilities = own.get("capabilities") or {}
    checks = {
        "runAsNonRoot is not true": merged.get("runAsNonRoot") is True,
        "runs as user 0": merged.get("runAsUser") != 0,
        "is privileged": not own.get("privileged"),
        "allowPrivilegeEscalation is not false": own.get("allowPrivilegeEscalation") is False,
        "does not drop all capabilities": capabilities.get("drop") == ["ALL"],
        "adds capabilities": set(capabilities.get("add") or []) <= {"NET_BIND_SERVICE"},
        "has no seccomp profile": (merged.get("seccompProfile") or {}).get("type")
        in ("RuntimeDefault", "Localhost"),
        "has host ports": not any(port.get("hostPort") for port in container.get("ports") or []),
    }
    return [what for what, holds in checks.items() if not holds]

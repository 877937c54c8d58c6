"""What the API server refuses in services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tidewheel.local.apimachinery import names
from tidewheel.local.apimachinery.fields import (
    FieldError,
    duplicate,
    forbidden,
    invalid,
    not_supported,
    required,
)
from tidewheel.local.apimachinery.metadata_rules import validate_labels
from tidewheel.local.apimachinery.pod_rules import port_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidewheel.local.apimachinery.fields import Manifest

_SERVICE_TYPES: Final = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_PROTOCOLS: Final = ("SCTP", "TCP", "UDP")
_NODE_PORTS: Final = range(30000, 32768)


def validate_service(obj: Manifest) -> Iterator[FieldError]:
    """Check a service: type, ports, selector, addresses."""
    spec = obj["spec"]
    kind, ports = spec.get("type", ""), spec.get("ports") or ()
    if not ports and spec.get("clusterIP") != "None" and kind != "ExternalName":
        yield required("spec.ports")
    if kind not in _SERVICE_TYPES:
        yield not_supported("spec.type", kind, _SERVICE_TYPES)
    if kind == "ExternalName":
        name = spec.get("externalName", "")
        if not name:
            yield required("spec.externalName")
        for text in names.subdomain_complaints(name.rstrip(".")) if name else ():
            yield invalid("spec.externalName", name, text)
    if spec.get("clusterIP") == "None" and kind in ("NodePort", "LoadBalancer"):
        yield invalid("spec.clusterIPs[0]", "None", f"may not be set to 'None' for {kind} services")
    if spec.get("sessionAffinity") not in ("ClientIP", "None"):
        yield not_supported("spec.sessionAffinity", spec.get("sessionAffinity"), ("ClientIP", "None"))
    yield from validate_labels(spec.get("selector") or {}, "spec.selector")
    seen: dict[str, set[Any]] = {"names": set(), "ports": set(), "nodePorts": set()}
    for index, port in enumerate(ports):
        yield from _port(port, f"spec.ports[{index}]", kind, seen, needs_name=len(ports) > 1)


def _port(
    port: Manifest, path: str, kind: str, seen: dict[str, set[Any]], *, needs_name: bool
) -> Iterator[FieldError]:
    name = port.get("name")
    if not name:
        if needs_name:
            yield required(f"{path}.name")
    else:
        for text in names.label_complaints(name):
            yield invalid(f"{path}.name", name, text)
        if name in seen["names"]:
            yield duplicate(f"{path}.name", name)
        seen["names"].add(name)
    yield from port_errors(port.get("port"), f"{path}.port")
    if port.get("protocol") not in _PROTOCOLS:
        yield not_supported(f"{path}.protocol", port.get("protocol"), _PROTOCOLS)
    target = port.get("targetPort")
    if isinstance(target, int):
        yield from port_errors(target, f"{path}.targetPort")
    elif isinstance(target, str):
        for text in names.port_name_complaints(target):
            yield invalid(f"{path}.targetPort", target, text)
    key = (port.get("protocol"), port.get("port"))
    if key in seen["ports"]:
        yield duplicate(path, {"port": port.get("port"), "protocol": port.get("protocol")})
    seen["ports"].add(key)
    node_port = port.get("nodePort")
    if not node_port:
        return
    if kind in ("ClusterIP", "ExternalName"):
        yield forbidden(f"{path}.nodePort", f"may not be used when `type` is '{kind}'")
    elif node_port not in _NODE_PORTS:
        text = "provided port is not in the valid range. The range of valid ports is 30000-32767"
        yield invalid(f"{path}.nodePort", node_port, text)
    elif node_port in seen["nodePorts"]:
        yield duplicate(f"{path}.nodePort", node_port)
    seen["nodePorts"].add(node_port)


def validate_service_change(new: Manifest, old: Manifest) -> Iterator[FieldError]:
    """Check that an update keeps the address."""
    before, after = old["spec"], new["spec"]
    if "ExternalName" in (before.get("type"), after.get("type")):
        return
    if before.get("clusterIP") and after.get("clusterIP") != before["clusterIP"]:
        yield invalid("spec.clusterIPs[0]", after.get("clusterIP", ""), "may not change once set")

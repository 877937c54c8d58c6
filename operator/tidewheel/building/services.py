"""The Service in front of a PDService's gateways."""

from __future__ import annotations

from tidewheel.api.manifest import SERVICES, Manifest
from tidewheel.api.meta import HTTP_PORT, LABEL_ROLE, LABEL_SERVICE
from tidewheel.api.pdservice import GatewayService
from tidewheel.building.labels import metadata_of
from tidewheel.planning.observed import ObservedService


def gateway_service(seen: ObservedService, spec: GatewayService) -> Manifest:
    """The Service named like the PDService; its port leads to the gateways' HTTP port."""
    port: Manifest = {
        "name": "http",
        "protocol": "TCP",
        "appProtocol": "http",
        "port": spec.port,
        "targetPort": HTTP_PORT,
    }
    if spec.node_port is not None:
        port["nodePort"] = spec.node_port
    return {
        "apiVersion": SERVICES.api_version,
        "kind": SERVICES.kind,
        "metadata": metadata_of(seen, seen.name, "gateway"),
        "spec": {
            "type": spec.type,
            "selector": {LABEL_SERVICE: seen.name, LABEL_ROLE: "gateway"},
            "ports": [port],
        },
    }

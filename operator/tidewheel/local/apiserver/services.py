"""Cluster addresses and node ports of Services: who has which, and which is free."""

from __future__ import annotations

import ipaddress
from typing import Any

from tidewheel.local.apiserver import errors
from tidewheel.local.apiserver.changes import Change
from tidewheel.local.apiserver.registry import Resource
from tidewheel.local.apiserver.store import Store

Manifest = dict[str, Any]

# A Service of this cluster is a TCP proxy on this machine, so its address must be one that a process can bind without
# privileges: all of 127.0.0.0/8 is on the loopback interface. The upper half of it keeps clear of the pods' addresses
# and of 127.0.0.1, where everything else listens.
SERVICE_RANGE = ipaddress.IPv4Network("127.96.0.0/12")
NODE_PORTS = range(30000, 32768)


class ServiceAddresses:
    """Allocations, kept in step with the stored Services.

    Args:
        store: the store whose `services` collection is followed.
        addresses: the range that cluster addresses come from.
    """

    def __init__(self, store: Store, addresses: ipaddress.IPv4Network = SERVICE_RANGE) -> None:
        self._addresses = addresses
        self._next = int(addresses.network_address) + 10
        self._next_port = NODE_PORTS.start
        self._ips: dict[str, str] = {}
        self._ports: dict[int, str] = {}
        for item in store.collection("services").select():
            self._take(item.object())
        store.listen(self._follow)

    def allocate(self, resource: Resource, service: Manifest, old: Manifest | None) -> None:
        """Give a Service what it needs and does not have yet; nothing is held until it is stored.

        Raises:
            ApiError: 422 when an address or port that it asks for is taken or out of range.
        """
        spec = service["spec"]
        uid = service["metadata"]["uid"]
        problems = list(self._address(spec, uid))
        problems += self._node_ports(spec, uid)
        if old is not None:
            was = (old.get("spec") or {}).get("clusterIP")
            if was and spec.get("clusterIP") != was and spec.get("type") != "ExternalName":
                text = f'Invalid value: "{spec.get("clusterIP", "")}": field is immutable'
                problems.append(errors.cause("spec.clusterIP", text, "FieldValueInvalid"))
        if problems:
            raise errors.invalid(resource.kind, resource.group, service["metadata"]["name"], problems)

    def keep_allocated(self, new: Manifest, old: Manifest) -> None:
        """What a client leaves out of an update stays as it was given."""
        spec, was = new.setdefault("spec", {}), old.get("spec") or {}
        if spec.get("type") == "ExternalName":
            return
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort"):
            if name in was and not spec.get(name):
                spec[name] = was[name]
        if spec.get("type") in ("NodePort", "LoadBalancer"):
            had = {
                (port.get("protocol"), port.get("port")): port.get("nodePort")
                for port in was.get("ports") or ()
            }
            for port in spec.get("ports") or ():
                kept = had.get((port.get("protocol"), port.get("port")))
                if kept and not port.get("nodePort"):
                    port["nodePort"] = kept

    def _address(self, spec: Manifest, uid: str) -> list[Manifest]:
        if spec.get("type") == "ExternalName":
            return []
        wanted = spec.get("clusterIP") or next(iter(spec.get("clusterIPs") or ()), "")
        problems = []
        if not wanted:
            wanted = self._free_address()
        elif wanted != "None":
            reason = self._refusal(wanted, uid)
            if reason:
                text = f'Invalid value: ["{wanted}"]: failed to allocate IP {wanted}: {reason}'
                problems.append(errors.cause("spec.clusterIPs", text, "FieldValueInvalid"))
        spec["clusterIP"] = wanted
        spec["clusterIPs"] = [wanted]
        spec.setdefault("ipFamilies", ["IPv4"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")
        return problems

    def _refusal(self, wanted: str, uid: str) -> str:
        try:
            address = ipaddress.IPv4Address(wanted)
        except ValueError:
            return "provided IP is not an IPv4 address"
        if address not in self._addresses:
            return f"the provided IP is not in the valid range. The range of valid IPs is {self._addresses}"
        if self._ips.get(wanted, uid) != uid:
            return "provided IP is already allocated"
        return ""

    def _free_address(self) -> str:
        first, last = int(self._addresses.network_address) + 10, int(self._addresses.broadcast_address)
        for _ in range(first, last):
            candidate = str(ipaddress.IPv4Address(self._next))
            self._next = self._next + 1 if self._next + 1 < last else first
            if candidate not in self._ips:
                return candidate
        raise errors.ApiError(500, "InternalError", f"no free address is left in {self._addresses}")

    def _node_ports(self, spec: Manifest, uid: str) -> list[Manifest]:
        ports = spec.get("ports") or []
        if spec.get("type") not in ("NodePort", "LoadBalancer"):
            return []
        problems = []
        chosen: set[int] = {port["nodePort"] for port in ports if port.get("nodePort")}
        for index, port in enumerate(ports):
            wanted = port.get("nodePort")
            if not wanted:
                port["nodePort"] = self._free_port(chosen)
                chosen.add(port["nodePort"])
                continue
            path = f"spec.ports[{index}].nodePort"
            if wanted not in NODE_PORTS:
                text = (
                    f"Invalid value: {wanted}: provided port is not in the valid range. "
                    f"The range of valid ports is {NODE_PORTS.start}-{NODE_PORTS.stop - 1}"
                )
                problems.append(errors.cause(path, text, "FieldValueInvalid"))
            elif self._ports.get(wanted, uid) != uid:
                text = f"Invalid value: {wanted}: provided port is already allocated"
                problems.append(errors.cause(path, text, "FieldValueInvalid"))
        return problems

    def _free_port(self, chosen: set[int]) -> int:
        for _ in NODE_PORTS:
            candidate = self._next_port
            self._next_port = candidate + 1 if candidate + 1 in NODE_PORTS else NODE_PORTS.start
            if candidate not in self._ports and candidate not in chosen:
                return candidate
        raise errors.ApiError(500, "InternalError", "no free node port is left")

    def _follow(self, storage: str, change: Change) -> None:
        if storage != "services":
            return
        if change.previous is not None:
            uid = change.previous.uid
            self._ips = {address: holder for address, holder in self._ips.items() if holder != uid}
            self._ports = {port: holder for port, holder in self._ports.items() if holder != uid}
        if change.type != "DELETED":
            self._take(change.item.object())

    def _take(self, service: Manifest) -> None:
        uid, spec = service["metadata"]["uid"], service.get("spec") or {}
        for address in spec.get("clusterIPs") or ():
            if address != "None":
                self._ips[address] = uid
        for port in spec.get("ports") or ():
            if port.get("nodePort"):
                self._ports[port["nodePort"]] = uid

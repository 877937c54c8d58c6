"""Cluster addresses and node ports."""

from __future__ import annotations

import ipaddress
from typing import Any

from tests.local.apiserver.conftest import MERGE, Client

SERVICES = "/api/v1/namespaces/default/services"


def ports(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"name": f"p{number}", "port": number, **more} for number in numbers]


async def test_every_service_gets_an_address_that_this_machine_can_bind(client: Client):
    first = await client.create(SERVICES, "a", spec={"ports": ports(80)})
    second = await client.create(SERVICES, "b", spec={"ports": ports(80)})
    addresses = {service["spec"]["clusterIP"] for service in (first, second)}
    assert len(addresses) == 2
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses)


async def test_a_taken_or_foreign_address_is_refused(client: Client):
    first = await client.create(SERVICES, "a", spec={"ports": ports(80)})
    for wanted in (first["spec"]["clusterIP"], "10.0.0.1"):
        body = {"metadata": {"name": "b"}, "spec": {"clusterIP": wanted, "ports": ports(80)}}
        status, answer = await client.ask("POST", SERVICES, body)
        assert (status, answer["details"]["causes"][0]["field"]) == (422, "spec.clusterIPs")
    await client.ok("DELETE", f"{SERVICES}/a")
    await client.create(SERVICES, "b", spec={"clusterIP": first["spec"]["clusterIP"], "ports": ports(80)})


async def test_an_update_keeps_what_was_allocated(client: Client):
    service = await client.create(SERVICES, "a", spec={"type": "NodePort", "ports": ports(80)})
    bare = {
        "metadata": {"name": "a"},
        "spec": {"type": "NodePort", "ports": ports(80), "selector": {"app": "x"}},
    }
    updated = await client.ok("PUT", f"{SERVICES}/a", bare)
    assert updated["spec"]["clusterIP"] == service["spec"]["clusterIP"]
    assert updated["spec"]["ports"] == service["spec"]["ports"]


async def test_a_node_port_belongs_to_one_service(client: Client):
    await client.create(SERVICES, "a", spec={"type": "NodePort", "ports": ports(80, nodePort=30080)})
    body = {"metadata": {"name": "b"}, "spec": {"type": "NodePort", "ports": ports(80, nodePort=30080)}}
    status, answer = await client.ask("POST", SERVICES, body)
    assert status == 422
    assert answer["details"]["causes"] == [
        {
            "reason": "FieldValueInvalid",
            "message": "Invalid value: 30080: provided port is already allocated",
            "field": "spec.ports[0].nodePort",
        }
    ]
    await client.ok(
        "PATCH", f"{SERVICES}/a", {"spec": {"ports": ports(80, nodePort=30081)}}, content_type=MERGE
    )
    await client.ok("POST", SERVICES, body)


async def test_node_ports_outside_the_range_are_refused(client: Client):
    body = {"metadata": {"name": "b"}, "spec": {"type": "NodePort", "ports": ports(80, nodePort=80)}}
    status, answer = await client.ask("POST", SERVICES, body)
    assert (status, answer["details"]["causes"][0]["field"]) == (422, "spec.ports[0].nodePort")

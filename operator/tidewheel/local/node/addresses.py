"""Loopback addresses for pods, each held by at most one agent of this machine."""

from __future__ import annotations

import random
import socket
from ipaddress import IPv4Address, IPv4Network

from tidewheel.local.claims import claim

#: The pods' part of 127.0.0.0/8; every address of it is on Linux's loopback interface already.
POD_NETWORK = IPv4Network("127.64.0.0/12")


class AddressesExhausted(Exception):
    """Every address of the pod network is held."""


class Addresses:
    """Hands out pod addresses that no other agent of this machine uses."""

    def __init__(self, network: IPv4Network = POD_NETWORK, *, start: int | None = None) -> None:
        self._network = network
        # Agents begin at different places, and an address is used again only after all others.
        self._next = random.randrange(network.num_addresses) if start is None else start  # noqa: S311
        self._held: dict[str, socket.socket] = {}

    def take(self) -> str:
        """A free address, held until it is released.

        Raises:
            AddressesExhausted: there is none.
        """
        for _ in range(self._network.num_addresses):
            offset = self._next = (self._next + 1) % self._network.num_addresses
            address = str(IPv4Address(int(self._network.network_address) + offset))
            if offset % 256 not in (0, 255) and self._hold(address):
                return address
        raise AddressesExhausted(f"all addresses of {self._network} are held; end some pods")

    def release(self, address: str) -> None:
        """Gives an address back."""
        held = self._held.pop(address, None)
        if held is not None:
            held.close()

    def _hold(self, address: str) -> bool:
        if address in self._held:
            return False
        held = claim(f"pods/{address}")
        if held is not None:
            self._held[address] = held
        return held is not None

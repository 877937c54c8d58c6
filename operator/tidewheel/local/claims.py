"""Names that one process of this machine can hold at a time: how agents and clusters keep their loopback addresses apart."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

from tidewheel.local.apiserver.services import SERVICE_RANGE

#: Addresses for about four thousand Services, for each of 256 clusters at a time.
_CLUSTER_PREFIX = 20


def claim(name: str) -> socket.socket | None:
    """Holds `name` until the socket is closed or this process ends; None if another holds it.

    The claim is an abstract Unix socket: it lives in the same network namespace as the loopback addresses
    that the names stand for, and the kernel takes it back from the dead.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.bind(f"\0tidewheel/{name}")
    except OSError:
        held.close()
        return None
    return held


class NoServiceRange(OSError):
    """The addresses for a cluster's Services are held by others."""


@contextlib.contextmanager
def service_range(remembered_in: Path | None = None) -> Iterator[IPv4Network]:
    """A range of Service addresses that no other cluster of this machine uses.

    A cluster that keeps its objects needs the same range again: it is remembered in a file.

    Raises:
        NoServiceRange: the remembered range, or every range, is held by another cluster.
    """
    ranges = list(SERVICE_RANGE.subnets(new_prefix=_CLUSTER_PREFIX))
    random.shuffle(ranges)
    if remembered_in is not None and remembered_in.exists():
        ranges = [IPv4Network(remembered_in.read_text().strip())]
    for network in ranges:
        held = claim(f"services/{network}")
        if held is None:
            continue
        with held:
            if remembered_in is not None:
                remembered_in.write_text(f"{network}\n")
            yield network
        return
    raise NoServiceRange(
        f"other clusters of this machine hold {ranges[0] if len(ranges) == 1 else SERVICE_RANGE}; stop one of them"
    )

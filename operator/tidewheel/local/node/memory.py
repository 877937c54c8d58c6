"""Memory limits by watching: what a container's processes hold for themselves is summed every half second.

Control groups would need privileges that a developer's account lacks, and an address space limit would end
programs such as torch that reserve far more than they touch. So a container can exceed its limit for half a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from tidewheel.local.node.container import Container
from tidewheel.local.node.process import reap_orphans, sessions

_PERIOD_SECONDS = 0.5


async def watch_memory(containers: Callable[[], Iterable[Container]]) -> None:
    """Ends containers above their limit, and reaps what their processes left behind, until cancelled."""
    while True:
        await asyncio.sleep(_PERIOD_SECONDS)
        running = [container for container in containers() if container.pid is not None]
        if not running:
            continue
        table = await asyncio.to_thread(sessions)
        for container in running:
            stats = table.get(container.pid or 0, [])
            used = sum(stat.private_bytes for stat in stats)
            if container.memory_limit is not None and used > container.memory_limit:
                container.kill_for_memory(used)
            if container.pid is not None and any(
                stat.is_zombie and stat.pid != container.pid for stat in stats
            ):
                reap_orphans(container.pid)

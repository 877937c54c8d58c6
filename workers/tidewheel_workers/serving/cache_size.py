"""How large a KV cache a worker takes when nobody says: by its role, within the memory that is left to it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tidewheel_workers.serving.settings import WorkerSettings

log = logging.getLogger(__name__)

#: Whole contexts that a prefill's cache holds: the prompts that are computed, and as much again of earlier ones for reuse.
PREFILL_CONTEXTS = 2
#: Of the memory that is left once the model is loaded; the rest is for what a pass computes and for KV on its way.
MOST = 0.5
CGROUP = Path("/sys/fs/cgroup")
#: Limit, use and what the kernel would give back of it, as versions 2 and 1 of control groups tell them.
CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def cache_tokens(settings: WorkerSettings, *, context: int, token_bytes: int, left: int | None) -> int:
    """Tokens that the KV cache is to hold.

    Args:
        settings: what was asked for, and the role. A decode holds a whole context for each slot, if nothing is asked.
        context: tokens that one request may have.
        token_bytes: keys and values of one token.
        left: bytes of memory that may still be taken; None if that cannot be told.
    """
    if settings.kv_cache_tokens is not None:
        return settings.kv_cache_tokens
    wanted = context * (settings.slots if settings.role == "decode" else PREFILL_CONTEXTS)
    if left is None or wanted * token_bytes <= left * MOST:
        return wanted
    fitting = max(int(left * MOST) // token_bytes, context)
    log.warning(
        "the KV cache gets %d tokens instead of %d: %d MiB of memory are left; raise the memory limit or set "
        "kvCacheTokens",
        min(fitting, wanted),
        wanted,
        left >> 20,
    )
    return min(fitting, wanted)


def memory_left(device: torch.device, cgroup: Path = CGROUP) -> int | None:
    """Bytes that this process may still take where the cache will lie; None if nothing tells."""
    if device.type != "cpu":
        module = getattr(torch, device.type, None)
        ask = getattr(module, "mem_get_info", None)
        return None if ask is None else int(ask(device)[0])
    known = [left for left in (_cgroup_left(cgroup), _available()) if left is not None]
    return min(known, default=None)


def _cgroup_left(cgroup: Path) -> int | None:
    for limit, used, stat, cached in CGROUP_FILES:
        try:
            pages = dict(line.split() for line in (cgroup / stat).read_text().splitlines())
            taken = int((cgroup / used).read_text()) - int(pages[cached])
            return max(0, int((cgroup / limit).read_text()) - taken)
        except (OSError, ValueError, KeyError):  # not this version, or "max": no limit
            continue
    return None


def _available() -> int | None:
    """What the machine has left, as the kernel estimates it."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError):
        pass
    return None

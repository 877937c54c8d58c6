"""How many processes fit into the CPUs that this container may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

#: Without a number in the settings. Each of them takes thousands of requests a second.
MOST_BY_ITSELF = 4


def processes(asked: int, *, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The number asked for; for 0 as many as there are CPUs, at most `MOST_BY_ITSELF`."""
    return asked or max(1, min(MOST_BY_ITSELF, math.floor(cpus(cgroup))))


def cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """The CPUs' worth of time that this process may use: by its affinity, and by its container's limit."""
    return min(len(os.sched_getaffinity(0)), _quota(cgroup))


def _quota(cgroup: Path) -> float:
    try:
        # version 2: "max 100000" or "150000 100000"
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    return int(quota) / int(period) if quota.isdigit() and int(period) > 0 else math.inf

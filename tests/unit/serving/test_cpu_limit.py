"""A gateway starts as many processes as its container has CPUs."""

from __future__ import annotations

import os

import pytest

from tidewheel_workers.serving.cpu_limit import MOST_BY_ITSELF, cpus, processes


def cgroup(tmp_path, **files: str):
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.fixture(autouse=True)
def _sixteen_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


@pytest.mark.parametrize(
    ("files", "want"),
    [
        pytest.param({"cpu.max": "150000 100000"}, 1.5, id="version 2"),
        pytest.param({"cpu.max": "max 100000"}, 16, id="version 2 without a limit"),
        pytest.param({"cpu__cpu.cfs_quota_us": "200000", "cpu__cpu.cfs_period_us": "100000"}, 2, id="version 1"),
        pytest.param({"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"}, 16, id="version 1 without a limit"),
        pytest.param({}, 16, id="no cgroup"),
        pytest.param({"cpu.max": "3200000 100000"}, 16, id="a limit above the affinity"),
    ],
)  # fmt: skip
def test_cpus(files, want, tmp_path):
    assert cpus(cgroup(tmp_path, **files)) == want


@pytest.mark.parametrize(
    ("asked", "limit", "want"),
    [
        pytest.param(0, "50000 100000", 1, id="at least one"),
        pytest.param(0, "290000 100000", 2, id="whole CPUs"),
        pytest.param(0, "max 100000", MOST_BY_ITSELF, id="not all of a large machine"),
        pytest.param(7, "100000 100000", 7, id="the number asked for"),
    ],
)
def test_processes(asked, limit, want, tmp_path):
    assert processes(asked, cgroup=cgroup(tmp_path, **{"cpu.max": limit})) == want

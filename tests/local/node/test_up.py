"""`tidewheel up` as people run it: processes that come, are watched over, and go together."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from tidewheel.api.manifest import CONFIG_MAPS, CRDS, NODES, PODS
from tidewheel.kube.client import HttpApi
from tidewheel.kube.connection import connect

from .world import config_map, is_ready, pod, shell, until, until_event

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 60.0


class Up:
    """A running `tidewheel up` and what it printed."""

    def __init__(self, process: asyncio.subprocess.Process, kubeconfig: Path) -> None:
        self.process = process
        self.kubeconfig = kubeconfig
        self.said: list[str] = []

    async def until_said(self, words: str) -> str:
        """The next line with these words."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            while line := (await self.process.stdout.readline()).decode():
                self.said.append(line)
                if words in line:
                    return line
        raise AssertionError(f"it ended without saying {words!r}: {''.join(self.said)}")

    def children(self, words: str) -> list[psutil.Process]:
        """The processes below it whose command line holds these words."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in below if words in " ".join(process.cmdline())]

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), PATIENCE_SECONDS)


@contextlib.asynccontextmanager
async def up(directory: Path, *options: str) -> AsyncIterator[Up]:
    """`tidewheel up --no-operator` until the block ends."""
    kubeconfig = directory / "kubeconfig"
    arguments = ("-m", "tidewheel.cli", "up", "--no-operator", "--kubeconfig", str(kubeconfig), *options)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    running = Up(process, kubeconfig)
    try:
        await running.until_said("Running:")
        yield running
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def test_a_cluster_comes_up_runs_pods_and_leaves_nothing(tmp_path):
    async with up(tmp_path) as cluster:
        async with HttpApi(connect(cluster.kubeconfig)) as api:
            await api.get(CRDS, "pdservices.tidewheel.dev")
            await api.create(PODS, pod("works", shell("while :; do sleep 0.1; done")))
            await until(api, PODS, "works", is_ready)
        below = psutil.Process(cluster.process.pid).children(recursive=True)
        assert len(below) >= 3

        assert await cluster.stop() == 0

        _, alive = psutil.wait_procs(below, timeout=5)
        assert alive == []


async def test_a_part_that_dies_is_started_again_and_said(tmp_path):
    async with up(tmp_path) as cluster, HttpApi(connect(cluster.kubeconfig)) as api:
        await until(api, NODES, "local-1", is_ready, namespace=None)
        [controllers] = cluster.children("control_plane")

        controllers.kill()

        assert "started again" in await cluster.until_said("The control plane ended")
        await api.create(PODS, pod("later", shell("while :; do sleep 0.1; done")))
        await until_event(api, "later", "Scheduled")


async def test_with_a_data_directory_a_restart_loses_nothing(tmp_path):
    options = ("--data", str(tmp_path / "data"))
    async with up(tmp_path, *options) as cluster, HttpApi(connect(cluster.kubeconfig)) as api:
        await api.create(CONFIG_MAPS, config_map("kept", key="value"))
        await api.create(PODS, pod("goes-on", shell("while :; do sleep 0.1; done")))
        await until(api, PODS, "goes-on", is_ready)
        assert await cluster.stop() == 0

    async with up(tmp_path, *options) as cluster, HttpApi(connect(cluster.kubeconfig)) as api:
        assert (await api.get(CONFIG_MAPS, "kept", "default"))["data"] == {"key": "value"}
        found = await until(
            api,
            PODS,
            "goes-on",
            lambda p: is_ready(p) and p["status"]["containerStatuses"][0]["restartCount"] == 1,
        )
        assert found["status"]["phase"] == "Running"


async def test_its_parts_do_not_outlive_it_when_it_is_killed(tmp_path):
    async with up(tmp_path) as cluster:
        below = psutil.Process(cluster.process.pid).children(recursive=True)

        cluster.process.kill()

        _, alive = await asyncio.to_thread(psutil.wait_procs, below, 30)
        assert alive == []


@pytest.mark.parametrize("signals", [1, 3])
async def test_impatient_ctrl_c_stops_it_as_cleanly(tmp_path, signals):
    async with up(tmp_path) as cluster:
        below = psutil.Process(cluster.process.pid).children(recursive=True)
        for _ in range(signals):
            cluster.process.send_signal(signal.SIGINT)
        await asyncio.wait_for(cluster.process.wait(), PATIENCE_SECONDS)

        _, alive = psutil.wait_procs(below, timeout=5)
        assert alive == []


async def test_a_wrong_nodes_file_is_said_before_anything_starts(tmp_path):
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text("nodes: [{name: UPPER}]")
    arguments = (
        "-m",
        "tidewheel.cli",
        "up",
        "--kubeconfig",
        str(tmp_path / "kubeconfig"),
        "--nodes",
        str(nodes),
    )

    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)

    assert process.returncode == 1
    assert "nodes.0.name" in said.decode()
    assert not (tmp_path / "kubeconfig").exists()

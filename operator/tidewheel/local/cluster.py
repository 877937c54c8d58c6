"""A whole cluster on this machine: `tidewheel up` for people, `LocalCluster` for tests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tidewheel.api.crd import all_crds
from tidewheel.api.manifest import CRDS
from tidewheel.kube.client import Api, HttpApi
from tidewheel.kube.connection import Connection, connect
from tidewheel.local.apiserver import ApiServer
from tidewheel.local.claims import service_range
from tidewheel.local.control_plane import run_control_plane
from tidewheel.local.node import AgentOptions, NodeAgent
from tidewheel.local.node.backoff import BackOffRule
from tidewheel.local.node.credentials import ApiAddress
from tidewheel.local.node.process import ended_with_parent
from tidewheel.local.nodes import NodesFile, default_nodes, load_nodes

logger = logging.getLogger(__name__)

CONTEXT = "tidewheel"
MANAGER = "tidewheel-up"
DEFAULT_DIRECTORY = Path(".tidewheel")
_STOP_SECONDS = 12.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """What `tidewheel up` can be told."""

    kubeconfig: Path = DEFAULT_DIRECTORY / "kubeconfig"
    #: Keeps the API's objects here across restarts; without it they are in memory.
    data: Path | None = None
    nodes: Path | None = None
    #: 0 takes a free port.
    port: int = 0
    with_operator: bool = True


async def run_cluster(options: ClusterOptions, *, progress: Progress = print) -> None:
    """Runs a cluster until cancelled.

    The API server lives in this process; control plane, node agent and operator are processes of their
    own, which are started again when they end. They stop in the opposite order.

    Raises:
        NodesFileError: the nodes file is wrong.
        NoServiceRange: another cluster holds the addresses that this one's Services had.
        OSError: the port is taken.
    """
    load_nodes(options.nodes)  # before anything runs, so that a mistake in it is the only message
    with contextlib.ExitStack() as stack:
        if options.data is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidewheel-")))
        else:
            work = options.data
            work.mkdir(parents=True, exist_ok=True)
        keeps = options.data is not None
        services = stack.enter_context(service_range(work / "service-range" if keeps else None))
        server = ApiServer(data=work / "objects.sqlite" if keeps else None, service_range=services)
        try:
            url = await server.start("127.0.0.1", options.port)
            write_kubeconfig(options.kubeconfig, url)
            progress(f"The API server answers at {url}")
            async with HttpApi(Connection(server=url), user_agent=MANAGER) as api:
                await install_crds(api)
            progress(f"kubectl --kubeconfig {options.kubeconfig} get nodes")
            await _supervise(_commands(options, work), options.kubeconfig, progress)
        finally:
            await server.stop()


@dataclass(frozen=True, slots=True)
class _Child:
    """A part of the cluster that is a process of its own."""

    title: str
    argv: tuple[str, ...]


def _commands(options: ClusterOptions, work: Path) -> list[_Child]:
    python, kubeconfig = sys.executable, str(options.kubeconfig.absolute())
    cli = (python, "-m", "tidewheel.cli")
    nodes = ("--nodes", str(options.nodes)) if options.nodes is not None else ()
    children = [
        _Child("control plane", (python, "-m", "tidewheel.local.control_plane", kubeconfig)),
        _Child(
            "node agent",
            (*cli, "node", "--kubeconfig", kubeconfig, "--data", str(work / "node"), *nodes),
        ),
    ]
    if options.with_operator:
        children.append(_Child("operator", (*cli, "operator", "--kubeconfig", kubeconfig)))
    return children


async def _supervise(children: Sequence[_Child], kubeconfig: Path, progress: Progress) -> None:
    tasks: list[asyncio.Task[None]] = []
    try:
        tasks += [
            asyncio.create_task(_keep_running(child, kubeconfig, progress), name=child.title)
            for child in children
        ]
        progress(f"Running: {', '.join(child.title for child in children)}. Ctrl-C stops everything.")
        # Not gather: it would cancel all of them at once, and their order of stopping would be lost.
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        progress("Stopping")
        for task in reversed(tasks):
            task.cancel()
            await asyncio.wait({task})


async def _keep_running(child: _Child, kubeconfig: Path, progress: Progress) -> None:
    """Starts the process again whenever it ends; a quick end makes the next start wait longer."""
    pause = _FIRST_PAUSE_SECONDS
    loop = asyncio.get_running_loop()
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig.absolute())}
    while True:
        began = loop.time()
        # In a session of its own, so that Ctrl-C reaches this process alone and the order of stopping is kept.
        process = await asyncio.create_subprocess_exec(
            *child.argv, env=environment, start_new_session=True, preexec_fn=ended_with_parent
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _end(process)
            raise
        pause = _FIRST_PAUSE_SECONDS if loop.time() - began > 60 else min(pause * 2, _LONGEST_PAUSE_SECONDS)
        progress(f"The {child.title} ended with code {code}; it is started again in {pause:g} s")
        await asyncio.sleep(pause)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def install_crds(api: Api) -> None:
    """Applies the project's custom resource definitions."""
    for crd in all_crds():
        await api.apply(CRDS, crd, manager=MANAGER)


def write_kubeconfig(path: Path, url: str, *, namespace: str = "default") -> None:
    """Writes a kubeconfig for the cluster at `url`, in one step, with a context named `tidewheel`."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": CONTEXT,
        "clusters": [{"name": CONTEXT, "cluster": {"server": url}}],
        "users": [{"name": CONTEXT, "user": {}}],
        "contexts": [
            {"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT, "namespace": namespace}}
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(yaml.safe_dump(config, sort_keys=False))
    fresh.replace(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCluster:
    """A running cluster of a test: where it is, and a client to it."""

    url: str
    kubeconfig: Path
    directory: Path
    api: Api
    server: ApiServer


@contextlib.asynccontextmanager
async def local_cluster(
    *,
    nodes_file: NodesFile | None = None,
    with_agent: bool = True,
    with_scheduler: bool = True,
    with_workloads: bool = True,
    with_crds: bool = True,
    with_operator: bool = False,
    stand_in: bool = False,
    back_off: BackOffRule | None = None,
) -> AsyncIterator[LocalCluster]:
    """A cluster in a temporary directory on free ports, in this process apart from the pods and the operator.

    A part that fails makes the block fail.
    """
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidewheel-test-")))
        server = ApiServer(service_range=stack.enter_context(service_range()))
        url = await server.start("127.0.0.1", 0)
        stack.push_async_callback(server.stop)
        kubeconfig = directory / "kubeconfig"
        write_kubeconfig(kubeconfig, url)
        api = await stack.enter_async_context(HttpApi(connect(kubeconfig), user_agent=MANAGER))
        if with_crds:
            await install_crds(api)
        if with_scheduler or with_workloads:
            work = run_control_plane(api, with_scheduler=with_scheduler, with_workloads=with_workloads)
            await stack.enter_async_context(_task(work, "control plane"))
        if with_agent:
            options = AgentOptions(
                nodes_file=nodes_file or default_nodes(),
                data=directory / "node",
                stand_in=stand_in,
                back_off=back_off or BackOffRule(),
                stop_grace_seconds=1.0,
            )
            await stack.enter_async_context(node_agent(api, url, options))
        if with_operator:
            argv = (sys.executable, "-m", "tidewheel.cli", "operator", "--kubeconfig", str(kubeconfig))
            work = _keep_running(_Child("operator", argv), kubeconfig, logger.warning)
            await stack.enter_async_context(_task(work, "operator"))
        yield LocalCluster(url=url, kubeconfig=kubeconfig, directory=directory, api=api, server=server)


@contextlib.asynccontextmanager
async def node_agent(api: Api, url: str, options: AgentOptions) -> AsyncIterator[NodeAgent]:
    """A node agent in this process; its nodes are registered when the block begins."""
    agent = NodeAgent(api, ApiAddress(server=url), options)
    registered = asyncio.Event()
    async with _task(agent.run(registered.set), "node agent") as task:
        waiting = asyncio.create_task(registered.wait())
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            task.result()
        yield agent


@contextlib.asynccontextmanager
async def _task(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """Runs `work` beside the block; its failure becomes the block's."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work, name=name)
        yield task
        task.cancel()

"""The routers that are compared: how each is started before the same stand-in workers, and where it listens."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from http_load.worker import MODEL
from tidewheel.api.ranktable import Backend, RouteGroup, Routes

HOST = "127.0.7.1"
PREFILLS = (9101, 9102)
DECODES = (9201, 9202)
PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """One of them."""

    name: str
    port: int
    module: str
    is_plain: bool = False  # passes a request on to one worker, without prefill and decode
    asks_at_once: bool = False  # prefill and decode at the same time

    def command(self, python: str) -> list[str]:
        """How it is started: the peers with the policy that costs them least and without a line per request."""
        if self.module.startswith("tidewheel"):
            return [sys.executable, "-m", self.module]
        modes = {"sglang_router": "--pd-disaggregation", "vllm_router": "--vllm-pd-disaggregation"}
        level = {"sglang_router": "warn", "vllm_router": "warning"}[self.module]
        workers = ["--worker-urls", *(f"http://{HOST}:{port}" for port in DECODES)]
        if not self.is_plain:
            workers = [modes[self.module]]
            for port in PREFILLS:
                workers += ["--prefill", f"http://{HOST}:{port}", "none"]
            for port in DECODES:
                workers += ["--decode", f"http://{HOST}:{port}"]
        return [
            *(python, "-m", f"{self.module}.launch_router", *workers),
            *("--host", HOST, "--port", str(self.port), "--prometheus-port", str(self.port + 20_000)),
            *("--policy", "round_robin", "--log-level", level, "--worker-startup-check-interval", "1"),
        ]

    def environment(self, directory: Path) -> dict[str, str]:
        """What it is told by its environment."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "TIDEWHEEL_"))
        }
        return kept | {
            "TIDEWHEEL_ROUTES_FILE": str(directory / "routes.json"),
            "TIDEWHEEL_MODEL_NAME": MODEL,
            "TIDEWHEEL_HTTP_PORT": str(self.port),
            "POD_IP": HOST,
        }


TIDEWHEEL = Router(name="tidewheel", port=9300, module="tidewheel_workers.serving.gateway")
PEERS = (
    Router(name="sglang-router", port=9301, module="sglang_router", asks_at_once=True),
    Router(name="vllm-router", port=9302, module="vllm_router"),
)
PLAIN_PEERS = (
    Router(name="sglang-router plain", port=9303, module="sglang_router", is_plain=True),
    Router(name="vllm-router plain", port=9304, module="vllm_router", is_plain=True),
)


def has(python: str, module: str) -> bool:
    """Whether that interpreter has that router."""
    if python == sys.executable:
        return importlib.util.find_spec(module) is not None
    probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", probe], check=False).returncode == 0


@contextmanager
def running(routers: Sequence[Router], python: str, directory: Path) -> Iterator[dict[str, psutil.Process]]:
    """The workers and these routers, each as it answers its first request; by name."""
    group = RouteGroup(
        name="g0",
        prefill=tuple(Backend(name=f"p{port}", address=HOST, port=port) for port in PREFILLS),
        decode=tuple(Backend(name=f"d{port}", address=HOST, port=port) for port in DECODES),
    )
    (directory / "routes.json").write_text(Routes(service="bench", model=MODEL, groups=(group,)).to_text())
    worker = [
        *(sys.executable, str(Path(__file__).with_name("worker.py")), HOST),
        *(",".join(map(str, ports)) for ports in (PREFILLS, DECODES)),
    ]
    _refuse_taken((*PREFILLS, *DECODES, *(router.port for router in routers)))
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command, environment in (
            ("workers", worker, dict(os.environ)),
            *((one.name, one.command(python), one.environment(directory)) for one in routers),
        ):
            with (directory / f"{name.replace(' ', '-')}.log").open("wb") as log:
                started[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        yield {name: psutil.Process(process.pid) for name, process in started.items()}
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _refuse_taken(ports: Iterable[int]) -> None:
    """Whoever listens there already would be measured in place of what we start."""
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                raise SystemExit(f"{HOST}:{port} is taken: end what listens there, and start again")


async def answers(port: int, *, within: float = 60.0) -> None:
    """Wait until a request at this port is answered well.

    Raises:
        TimeoutError: it never was.
    """
    async with asyncio.timeout(within):
        while True:
            try:
                reader, writer = await asyncio.open_connection(HOST, port)
                writer.write(request(port, is_stream=False))
                status = await reader.readline()
                writer.close()
                if b" 200 " in status:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.1)


def request(port: int, *, is_stream: bool) -> bytes:
    """A chat of about a hundred words, as clients send it."""
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "You know the sea."},
                {"role": "user", "content": "tell me about the tides " * 20},
            ],
            "stream": is_stream,
            "max_tokens": 32,
            "temperature": 0.7,
        },
        separators=(",", ":"),
    ).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def cpu_seconds(process: psutil.Process) -> float:
    """What it and its children have used."""
    return sum(
        times.user + times.system
        for times in (one.cpu_times() for one in (process, *process.children(recursive=True)))
    )

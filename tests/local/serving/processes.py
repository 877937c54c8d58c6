"""A service of real processes on loopback addresses of its own, for tests; the engine is the stand-in unless they say."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

from tidewheel.api.ranktable import Backend, Member, RankTable, RouteGroup, Routes
from tidewheel.api.scenarios import RouteScenario

MODEL = "stand-in-model"
_networks = itertools.count(1)


def eventually(holds: Callable[[], Any], *, within: float = 60.0) -> Any:
    """Look until it holds and give what it gave; the seconds are only for when it never does."""
    ends = time.monotonic() + within
    while not (value := holds()):
        if time.monotonic() > ends:
            raise TimeoutError(f"{holds} did not hold within {within} s")
        time.sleep(0.02)
    return value


@dataclass(slots=True)
class Worker:
    """One process."""

    name: str
    role: str
    host: str
    directory: Path
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    program: Sequence[str] = ()  # Python's arguments, where they are not the role's module

    @property
    def url(self) -> str:
        return f"http://{self.host}:8000"

    @property
    def termination_log(self) -> Path:
        return self.directory / f"{self.name}.termination"

    @property
    def log(self) -> str:
        return (self.directory / f"{self.name}.log").read_text()

    def has_read(self, what: str, digest: str) -> bool:
        """Whether the last "routes" or "rank table" it read is the one with this digest."""
        read = [line for line in self.log.splitlines() if f'"{what} ' in line]
        return bool(read) and f"{what} {digest}" in read[-1]

    def start(self) -> None:
        """Start, or start again."""
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(self.program or ("-m", f"tidewheel_workers.serving.{self.role}"))],
                env={
                    **{k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "TIDEWHEEL_"))},
                    "TIDEWHEEL_ROLE": self.role,
                    "TIDEWHEEL_SERVICE": "chat",
                    "TIDEWHEEL_MODEL_NAME": MODEL,
                    "TIDEWHEEL_TERMINATION_LOG": str(self.termination_log),
                    "POD_NAME": self.name,
                    "POD_UID": f"uid-{self.name}",
                    "POD_IP": self.host,
                    **self.environment,
                },
                stderr=log,
                stdout=log,
            )

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """As the kernel does when memory is short."""
        self.process.kill()
        self.process.wait(10)

    def exit_code(self) -> int:
        """Wait for the end."""
        return self.process.wait(20)

    def health(self, probe: str = "ready") -> dict[str, Any]:
        """A probe's answer; empty when nobody answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/health/{probe}", timeout=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)
        except OSError:
            return {}

    def wait_ready(self) -> None:
        try:
            eventually(lambda: self.health().get("ready"), within=120)
        except TimeoutError as error:
            raise TimeoutError(f"{self.name}: {self.health()}\n{self.log}") from error

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@dataclass(kw_only=True)
class Service:
    """A gateway and one group behind it; use it as a context manager."""

    directory: Path
    prefills: int = 1
    decodes: int = 1
    source: str = "stand-in"
    environment: Mapping[str, str] = field(default_factory=dict)
    gateway_environment: Mapping[str, str] = field(default_factory=dict)
    scenarios: Sequence[Mapping[str, Any]] = ()
    combined: bool = False  # decodes compute the prompts, too

    def __post_init__(self) -> None:
        self._network = f"127.{60 + os.getpid() % 100}.{next(_networks)}"
        self._hosts = itertools.count(1)
        self.gateway = Worker(
            "gateway",
            "gateway",
            self._host(),
            self.directory,
            {"TIDEWHEEL_ROUTES_FILE": str(self.directory / "routes.json")}
            | dict(self.environment)
            | dict(self.gateway_environment),
        )
        self.prefill = [self._worker("prefill", i) for i in range(self.prefills)]
        self.decode = [self._worker("decode", i) for i in range(self.decodes)]
        self._made = self.all

    def __enter__(self) -> Self:
        self.publish()
        try:
            for worker in self.all:
                worker.start()
            for worker in self.all:
                worker.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # also those that a test took out of the group, or put into it
        known = {id(worker): worker for worker in (*self._made, *self.all)}.values()
        started = [worker.process for worker in known if worker.process is not None]
        for process in started:
            process.kill()
        for process in started:
            process.wait()

    @property
    def all(self) -> list[Worker]:
        return [*self.prefill, *self.decode, self.gateway]

    @property
    def members(self) -> list[Worker]:
        return [*self.prefill, *self.decode]

    def publish(self) -> tuple[str, str]:
        """Write rank table and routes as the operator would; gives their digests."""
        return self.publish_ranks(), self.publish_routes()

    def publish_ranks(self) -> str:
        """The rank table only; gives its digest."""
        members = [
            Member(rank=rank, role=w.role, name=w.name, uid=f"uid-{w.name}", address=w.host)
            for rank, w in enumerate(self.members)
        ]
        table = RankTable(
            service="chat", group="g0", revision="r1", members=tuple(members), combined=self.combined
        )
        self._write("ranktable.json", table)
        return table.digest()

    def publish_routes(self) -> str:
        """The routes only; gives their digest."""
        routed = () if self.combined else self.prefill
        group = RouteGroup(
            name="g0",
            combined=self.combined,
            prefill=tuple(Backend(name=w.name, address=w.host) for w in routed),
            decode=tuple(Backend(name=w.name, address=w.host) for w in self.decode),
        )
        scenarios = tuple(RouteScenario.model_validate(one) for one in self.scenarios)
        routes = Routes(service="chat", model=MODEL, groups=(group,), scenarios=scenarios)
        self._write("routes.json", routes)
        return routes.digest()

    def add_decode(self) -> Worker:
        """One more member, published and started."""
        return self._add("decode", self.decode)

    def add_prefill(self) -> Worker:
        """One more member, published and started; in a combined group no gateway hears of it yet."""
        return self._add("prefill", self.prefill)

    def _add(self, role: str, workers: list[Worker]) -> Worker:
        worker = self._worker(role, len(workers))
        workers.append(worker)
        self.publish()
        worker.start()
        worker.wait_ready()
        return worker

    def client(self, **options: Any) -> AsyncOpenAI:
        """OpenAI's own client, which does not try again by itself here."""
        return AsyncOpenAI(
            **{"base_url": f"{self.gateway.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 30}
            | options
        )

    def slots_used(self) -> float:
        """Over all members."""
        return sum(worker.metric("tidewheel_slots", state="used") for worker in self.members)

    def _worker(self, role: str, number: int) -> Worker:
        return Worker(
            f"{role}-{number}",
            role,
            self._host(),
            self.directory,
            {
                "TIDEWHEEL_GROUP": "g0",
                "TIDEWHEEL_MODEL_SOURCE": self.source,
                "TIDEWHEEL_RANKS_FILE": str(self.directory / "ranktable.json"),
            }
            | dict(self.environment),
        )

    def _host(self) -> str:
        return f"{self._network}.{next(self._hosts)}"

    def _write(self, name: str, content: RankTable | Routes) -> None:
        new = self.directory / f"{name}.new"
        new.write_text(content.to_text())
        new.replace(self.directory / name)


def ask(text: str, **fields: Any) -> dict[str, Any]:
    """The arguments of a chat."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}

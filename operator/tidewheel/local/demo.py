"""The demonstration: a cluster, a PDService, questions and answers, everything as a user would do it by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from rich.console import Console
from rich.status import Status
from rich.table import Table

from tidewheel.local.tools import find_tool

QUESTIONS = (
    "What is the capital of France?",
    "Name three primary colours.",
    "Explain in one sentence what a Kubernetes operator does.",
    "Write a haiku about the sea.",
)
_LONGEST_ANSWER = 64


class DemoFailed(Exception):
    """A step of the demonstration did not work; the message holds what the step printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answered question and how long it took, as a client sees it."""

    question: str
    text: str
    ttft_seconds: float
    tpot_seconds: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens over the time from the request to the last of them."""
        return self.tokens / (self.ttft_seconds + self.tpot_seconds * max(self.tokens - 1, 0))


class Kubectl:
    """The real kubectl against one kubeconfig."""

    def __init__(self, kubeconfig: Path, console: Console) -> None:
        self._binary = find_tool("kubectl")
        self._environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        self._console = console

    async def __call__(self, *arguments: str, show: bool = False) -> str:
        """What it prints.

        Raises:
            DemoFailed: it exited with an error.
        """
        if show:
            self._console.print(f"[bold]$ kubectl {' '.join(arguments)}[/]")
        process = await asyncio.create_subprocess_exec(
            str(self._binary),
            *arguments,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        if process.returncode:
            raise DemoFailed(
                f"kubectl {' '.join(arguments)}: {errors.decode().strip() or output.decode().strip()}"
            )
        if show:
            self._console.print(output.decode().rstrip(), highlight=False, markup=False, soft_wrap=True)
        return output.decode()


async def run_demo(manifest: Path, *, console: Console, as_json: bool = False) -> None:
    """Runs the whole demonstration with `manifest`, a PDService.

    Raises:
        DemoFailed: a step did not work.
    """
    service = yaml.safe_load(manifest.read_text())
    name, model = service["metadata"]["name"], service["spec"]["model"]["name"]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tidewheel-demo-") as directory:
        kubeconfig = Path(directory, "kubeconfig")
        log = Path(directory, "cluster.log")
        kubectl = Kubectl(kubeconfig, console)
        with console.status("Starting a cluster on this machine") as status:
            async with _cluster(kubeconfig, log):
                await _wait_for_cluster(kubectl, kubeconfig, log)
                _done(console, "A cluster runs on this machine", started)
                console.print(f"[bold]$ kubectl apply -f {manifest}[/]")
                console.print((await kubectl("apply", "-f", str(manifest))).rstrip(), highlight=False)
                await _wait_until_ready(kubectl, name, status)
                _done(console, f"PDService {name} is ready", started)
                status.update("Asking questions through the gateway")
                address = await kubectl(
                    "get", "service", name, "-o", "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}"
                )
                answers = [
                    await _ask(f"http://{address}", model, question, console) for question in QUESTIONS
                ]
                console.print(_figures(answers))
                await kubectl("get", "pdservices,pods", "-o", "wide", show=True)
                decisions = json.loads(await kubectl("get", "pds", name, "-o", "json"))["status"]["decisions"]
                console.print(_decision_table(decisions))
                status.update("Deleting the PDService")
                await kubectl("delete", "-f", str(manifest), "--wait", show=True)
                await kubectl(
                    "wait", "--for=delete", "pod", "-l", f"tidewheel.dev/service={name}", "--timeout=60s"
                )
                status.update("Stopping the cluster")
        _done(console, "Everything is torn down", started)
    if as_json:
        sys.stdout.write(
            json.dumps({"seconds": time.monotonic() - started, "answers": [asdict(a) for a in answers]})
            + "\n"
        )


@contextlib.asynccontextmanager
async def _cluster(kubeconfig: Path, log: Path) -> AsyncIterator[None]:
    """`tidewheel up` as a process of its own, stopped as Ctrl-C would."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tidewheel.cli", "up", "--kubeconfig", str(kubeconfig)),
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
        )
    try:
        yield
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _wait_for_cluster(kubectl: Kubectl, kubeconfig: Path, log: Path) -> None:
    for _ in range(240):
        if kubeconfig.exists():
            with contextlib.suppress(DemoFailed):
                await kubectl(
                    "wait", "--for=condition=Established", "crd/pdservices.tidewheel.dev", "--timeout=20s"
                )
                return
        await asyncio.sleep(0.25)
    raise DemoFailed(f"the cluster did not start; its log ends:\n{log.read_text()[-3000:]}")


async def _wait_until_ready(kubectl: Kubectl, name: str, status: Status) -> None:
    """Waits with kubectl, and tells meanwhile what the pods do."""
    waiting = asyncio.create_task(kubectl("wait", "--for=condition=Ready", f"pds/{name}", "--timeout=180s"))
    while not waiting.done():
        pods = json.loads(await kubectl("get", "pods", "-l", f"tidewheel.dev/service={name}", "-o", "json"))[
            "items"
        ]
        states = ", ".join(f"{_role(pod)} {_state(pod)}" for pod in pods) or "no pods yet"
        status.update(f"Waiting until it is ready: {states}")
        await asyncio.wait([waiting], timeout=1.0)
    try:
        waiting.result()
    except DemoFailed as error:
        raise DemoFailed(
            f"{error}\n{await kubectl('describe', 'pds', name)}\n{await kubectl('get', 'pods')}"
        ) from None


def _role(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"].get("tidewheel.dev/role", pod["metadata"]["name"]))


def _state(pod: dict[str, Any]) -> str:
    conditions = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", ())}
    return (
        "ready"
        if conditions.get("Ready") == "True"
        else str(pod.get("status", {}).get("phase", "pending")).lower()
    )


async def _ask(url: str, model: str, question: str, console: Console) -> Answer:
    """Streams one answer as an OpenAI client does, and takes the times."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": _LONGEST_ANSWER,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    console.print(f"\n[bold cyan]{question}[/]")
    sent, times, text, tokens = time.monotonic(), [], "", 0
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        if response.status != 200:
            raise DemoFailed(f"the gateway answered {response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            chunk = json.loads(line.removeprefix(b"data: "))
            if "error" in chunk:
                raise DemoFailed(f"the answer broke off: {chunk['error']}")
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            for choice in chunk["choices"]:
                if piece := choice["delta"].get("content"):
                    times.append(time.monotonic())
                    text += piece
                    console.print(piece, end="", highlight=False, markup=False)
    console.print()
    if not times:
        raise DemoFailed(f"no token came for {question!r}")
    return Answer(
        question=question,
        text=text,
        ttft_seconds=times[0] - sent,
        tpot_seconds=(times[-1] - times[0]) / max(tokens - 1, 1),
        tokens=tokens,
    )


def _figures(answers: list[Answer]) -> Table:
    table = Table("question", "TTFT ms", "TPOT ms", "tokens", "tokens/s", title="As the client saw it")
    for answer in answers:
        table.add_row(
            answer.question,
            f"{answer.ttft_seconds * 1000:.0f}",
            f"{answer.tpot_seconds * 1000:.1f}",
            str(answer.tokens),
            f"{answer.tokens_per_second:.1f}",
        )
    return table


def _decision_table(decisions: list[dict[str, str]]) -> Table:
    table = Table("time", "action", "reason", "message", title="The operator's last decisions")
    for decision in decisions:
        table.add_row(decision["time"], decision["action"], decision["reason"], decision["message"])
    return table


def _done(console: Console, what: str, started: float) -> None:
    console.print(f"[green]✓[/] {what} [dim]({time.monotonic() - started:.0f} s)[/]")

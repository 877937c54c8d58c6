"""One soak: warm up, look, let it storm, let it calm down, look again, judge."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.soak.clients import Clients
from tests.soak.director import Director
from tests.soak.fleet import Fleet
from tests.soak.plans import CHAT, KNOWN_TOKENS, Plan, chat
from tests.soak.report import Soak
from tests.soak.residue import at_rest, complaints
from tests.soak.story import Role, tell
from tests.soak.verdict import checks, is_explained

#: What a real model is asked; its answers are taken before the storm.
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is seven times eight?",
    "Who wrote Hamlet?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How long, how hard, and with what."""

    seconds: float = 600.0
    seed: int = 1
    clients: int = 16  # fewer than the slots that are left when a server is away
    gap_seconds: float = 2.5
    calm_seconds: float = 5.0  # of load without faults, before and after
    engine: str = "stand-in:step_ms=10,prefill_ms=5"
    gateways: int = 2
    prefills: int = 3
    decodes: int = 3

    @property
    def cast(self) -> dict[Role, int]:
        """Processes by role."""
        return {"gateway": self.gateways, "prefill": self.prefills, "decode": self.decodes}


async def soak(options: Options, directory: Path, say: Callable[[str], None]) -> Soak:
    """Do it, and judge.

    Raises:
        RuntimeError: the service does not even start.
    """
    story = tell(options.seed, seconds=options.seconds, cast=options.cast, gap_seconds=options.gap_seconds)
    say(f"seed {options.seed}: {len(story)} faults in {options.seconds:g} s; logs in {directory}")
    async with (
        Fleet(directory, cast=options.cast, source=options.engine, environment={}) as fleet,
        Clients(fleet, count=options.clients, seed=options.seed) as clients,
    ):
        await _get_acquainted(fleet, clients, options)
        say("warming up")
        await _load(clients, options.calm_seconds)
        before = await at_rest(fleet)

        say("the storm begins")
        director = Director(fleet, say)
        clients.begin()
        began = time.monotonic()
        await director.perform(story)
        await asyncio.sleep(began + options.seconds - time.monotonic())
        await clients.end()

        say("the storm is over")
        over = time.monotonic()
        await at_rest(fleet)
        await _load(clients, options.calm_seconds)
        after = await at_rest(fleet)
        return Soak(
            seed=options.seed,
            seconds=options.seconds,
            engine=options.engine,
            records=clients.records,
            windows=director.windows,
            before=before,
            after=after,
            checks=checks(
                clients.records,
                director.windows,
                before,
                after,
                sent=clients.sent,
                afterwards=[one for one in clients.records if one.sent >= over],
                unasked_ends=fleet.unasked_ends,
                complaints=[one for one in complaints(fleet.logs) if not is_explained(one, director.windows)],
            ),
        )


async def _load(clients: Clients, seconds: float) -> None:
    clients.begin()
    await asyncio.sleep(seconds)
    await clients.end()


async def _get_acquainted(fleet: Fleet, clients: Clients, options: Options) -> None:
    """Find out whether the service takes several choices, and what a model that computes answers."""
    several, _ = await clients.exchange(_first(chat("two", n=2)), fleet.gateways[0])
    clients.has_choices = several is not None and several.status == 200
    if options.engine.partition(":")[0] != "stand-in":
        known = []
        for text in QUESTIONS:
            body = chat(text, temperature=0, max_tokens=KNOWN_TOKENS)
            seen, _ = await clients.exchange(_first(body), fleet.gateways[0])
            if seen is None or seen.status != 200:
                raise RuntimeError(f"{options.engine} does not answer {text!r}: {seen}")
            known.append((text, json.loads(seen.raw)["choices"][0]["message"]["content"]))
        clients.known = known


def _first(body: bytes) -> Plan:
    return Plan(kind="first", endpoint=CHAT, body=body)

"""Replays recorded exchanges against a server and makes both sides comparable; see recordings/README.md."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import aiohttp

RECORDINGS = Path(__file__).with_name("recordings")
# In the order in which they were recorded: later files use the objects of earlier ones.
FILES = ("setup", "crud", "patch", "apply", "lists", "pods", "delete", "watches", "discovery")
USER_AGENT = "python-requests/2.32"
UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
AGE = re.compile(r"\d+[smhd]")
GENERATED = re.compile(r"\bgen-[a-z0-9]{5}\b")
ACCOUNT_VOLUME = "kube-api-access-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One line of a recording: a request with its response, or a watch with its events."""

    file: str
    index: int
    line: dict[str, Any]

    @property
    def id(self) -> str:
        what = self.line.get("request") or {"method": "WATCH", "path": self.line["watch"]["path"]}
        note = self.line["note"] or f"{what['method']} {urlsplit(what['path']).path.rpartition('/')[2]}"
        return f"{self.file}-{self.index}: {note}"

    @property
    def is_watch(self) -> bool:
        return "watch" in self.line

    @property
    def status(self) -> int:
        return self.line["status"] if self.is_watch else self.line["response"]["status"]

    @property
    def body(self) -> Any:
        return self.line["events"] if self.is_watch else self.line["response"]["body"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: Any


def exchanges() -> list[Exchange]:
    found = []
    for name in FILES:
        lines = (RECORDINGS / f"{name}.jsonl").read_text().splitlines()
        found += [Exchange(file=name, index=i, line=json.loads(line)) for i, line in enumerate(lines)]
    return found


@dataclass(slots=True)
class Identities:
    """What the recorded run called things, and what the server under test calls them."""

    uids: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    """Continue tokens and generated names."""
    object_versions: list[tuple[int, int]] = field(default_factory=list)

    def learn(self, recorded: Any, answered: Any) -> None:
        """Pair the identities at equal places of two bodies."""
        if isinstance(recorded, list) and isinstance(answered, list):
            for one, other in zip(recorded, answered, strict=False):
                self.learn(one, other)
        if not isinstance(recorded, dict) or not isinstance(answered, dict):
            return
        for key, value in recorded.items():
            other = answered.get(key)
            if isinstance(value, str) and isinstance(other, str):
                if key == "uid":
                    self.uids[value] = other
                elif key == "resourceVersion":
                    self.versions[value] = other
                    if "uid" in recorded:
                        self.object_versions.append((int(value), int(other)))
                elif key == "continue" or (key == "name" and "generateName" in recorded):
                    self.others[value] = other
            self.learn(value, other)

    def translate(self, value: Any, key: str = "") -> Any:
        """A recorded request body as the server under test must be asked."""
        if isinstance(value, dict):
            return {name: self.translate(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.translate(inner) for inner in value]
        if key == "uid":
            return self.uids.get(value, value)
        if key == "resourceVersion":
            return self.versions.get(value, value)
        return self.others.get(value, value) if isinstance(value, str) else value

    def path(self, path: str) -> str:
        """A recorded path and query, likewise."""
        split = urlsplit(path)
        query = [
            (
                name,
                self.versions.get(value, value)
                if name == "resourceVersion"
                else self.others.get(value, value),
            )
            for name, value in parse_qsl(split.query, keep_blank_values=True)
        ]
        return split.path + (f"?{urlencode(query, quote_via=quote)}" if query else "")


async def replay(url: str) -> tuple[dict[str, Answer], Identities]:
    """Make every recorded request, in order; answers by exchange id."""
    answers: dict[str, Answer] = {}
    known = Identities()
    async with aiohttp.ClientSession(url, headers={"User-Agent": USER_AGENT}) as session:
        pending = exchanges()
        while pending:
            exchange = pending.pop(0)
            if not exchange.is_watch:
                answers[exchange.id] = await _ask(session, exchange, known)
                if exchange.file == "setup" and exchange.index == 0:
                    await _act_as_controller_manager(session)
                known.learn(exchange.body, answers[exchange.id].body)
                continue
            watches = [exchange]
            while pending and pending[0].is_watch:
                watches.append(pending.pop(0))
            for one, answer in zip(
                watches, await asyncio.gather(*(_watch(session, one, known) for one in watches)), strict=True
            ):
                answers[one.id] = answer
                known.learn(one.body, answer.body)
    return answers, known


async def _ask(session: aiohttp.ClientSession, exchange: Exchange, known: Identities) -> Answer:
    request = exchange.line["request"]
    headers = {"Accept": request["accept"]}
    body = request["body"]
    if request["contentType"]:
        headers["Content-Type"] = request["contentType"]
    payload = None if body in (None, "") else json.dumps(known.translate(body))
    for attempt in range(50):
        async with session.request(
            request["method"], known.path(request["path"]), data=payload, headers=headers
        ) as response:
            text = await response.text()
            parsed = json.loads(text) if "json" in response.headers.get("Content-Type", "") else text
            answer = Answer(status=response.status, body=parsed)
        settled = answer.status == exchange.status and _size(answer.body) == _size(exchange.body)
        # Collection takes a moment, here as there.
        if settled or exchange.file != "delete" or request["method"] != "GET" or attempt == 49:
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError("unreachable")


def _size(body: Any) -> int:
    return len(body.get("metadata") or {}) if isinstance(body, dict) else 0


async def _watch(session: aiohttp.ClientSession, exchange: Exchange, known: Identities) -> Answer:
    watch = exchange.line["watch"]
    # The recorded timeouts give people time to act; here everything has happened already.
    path = re.sub(r"timeoutSeconds=\d+", "timeoutSeconds=1", known.path(watch["path"]))
    async with session.get(path, headers={"Accept": watch["accept"]}) as response:
        text = await response.text()
        return Answer(status=response.status, body=[json.loads(line) for line in text.splitlines()])


async def _act_as_controller_manager(session: aiohttp.ClientSession) -> None:
    """Publish what the recorded cluster's controllers put into every new namespace."""
    listed = next(one for one in exchanges() if one.file == "lists" and one.index == 5)
    for item in listed.body["items"]:
        if item["metadata"]["name"].endswith("-ca.crt") or item["metadata"]["name"] == "kube-root-ca.crt":
            body = {
                "data": item["data"],
                "metadata": {key: item["metadata"][key] for key in ("name", "annotations")},
            }
            headers = {"User-Agent": "kube-controller-manager/v1.36.2", "Content-Type": "application/json"}
            path = "/api/v1/namespaces/conformance/configmaps"
            async with session.post(path, data=json.dumps(body), headers=headers) as response:
                assert response.status == 201, await response.text()


def comparable(value: Any, key: str = "") -> Any:
    """A body without what differs between any two clusters."""
    if isinstance(value, dict):
        return _comparable_object(value)
    if isinstance(value, list):
        kept = [one for one in value if not _is_account_volume(one)]
        return [comparable(one, key) for one in kept]
    if not isinstance(value, str):
        return value
    if key == "resourceVersion":
        return "<version>"
    if key == "manager":
        return value.removeprefix("x-")
    if key == "serverAddress":
        return "<address>"
    if key in ("clusterIP", "clusterIPs") and value != "None":
        return "<address>"
    if key == "continue" and value:
        return "<continue>"
    if key == "cells" and AGE.fullmatch(value):
        return "<age>"
    value = re.sub(r"(too old resource version: \d+) \(\d+\)", r"\1 (<version>)", value)
    return TIME.sub("<time>", UID.sub("<uid>", GENERATED.sub("<generated>", value)))


def _comparable_object(value: dict[str, Any]) -> dict[str, Any]:
    if value.get("kind") == "Status" and value.get("code") == 422:
        # Of validation errors the field paths and reasons count, not the words.
        causes = (value.get("details") or {}).get("causes") or []
        kept = [{"field": one["field"], "reason": one["reason"]} for one in causes]
        details = {**(value.get("details") or {}), "causes": kept}
        return {
            **{name: comparable(inner) for name, inner in value.items() if name != "message"},
            "details": details,
        }
    shown = {UID.sub("<uid>", name): comparable(inner, name) for name, inner in value.items()}
    managers = shown.get("managedFields")
    if managers and any(str(one.get("manager")).startswith("kube-") for one in managers):
        # Entries of one moment stand in the order of their managers, and the recorded ones carry an "x-" in front.
        managers.sort(key=lambda one: (one["operation"], one["manager"], one.get("subresource", "")))
    for name in ("volumes", "volumeMounts"):
        if name in shown and not shown[name]:
            del shown[name]
    return shown


def _is_account_volume(value: Any) -> bool:
    return isinstance(value, dict) and str(value.get("name", "")).startswith(ACCOUNT_VOLUME)

"""Several processes that share a port: starts them, replaces the ones that die or hang, and lets them drain together.

Each has a listening socket of its own (SO_REUSEPORT), which this process keeps: connections that wait at a dead process are
served by the one that takes its place. This process serves nothing, has no threads and no event loop, so that it can fork
at any time.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tidewheel_workers.serving.family import MOST_LINE_BYTES, Place
from tidewheel_workers.serving.metric_sums import Snapshot, lasting, snapshot, total
from tidewheel_workers.serving.start_errors import CannotStart, cannot_listen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

log = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
DRAIN_REPORT_SECONDS = 0.05
#: A process that says nothing for so long is taken for dead.
HANG_SECONDS = 10.0
#: From the order to end to a kill.
END_SECONDS = 5.0
SEND_SECONDS = 1.0
#: More deaths than these in so many seconds are no accident.
MOST_DEATHS = 5
DEATHS_SECONDS = 60.0


def listen_together(host: str, port: int, count: int) -> list[socket.socket]:
    """Bound sockets that share a port; they listen when somebody says so.

    Raises:
        CannotStart: the address cannot be bound, or somebody else has it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # a port that others share with us would let anybody bind it beside us, so look first
        with socket.socket(family) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
            port = alone.getsockname()[1]
        together = []
        for _ in range(count):
            one = socket.socket(family)
            together.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind((host, port))
    except OSError as error:
        raise cannot_listen(error, host, port) from error
    return together


@dataclass(slots=True, kw_only=True)
class _Child:
    number: int
    pid: int
    talk: socket.socket
    is_up: bool = False
    drains: bool = False
    unfinished: int = 1
    asked_at: float | None = None  # for a report that has not come
    reported_at: float = 0.0
    metrics: Snapshot = field(default_factory=list)
    heard: bytes = b""


@dataclass(slots=True, kw_only=True)
class _Collecting:
    """Somebody wants the metrics of all; these have not reported yet."""

    child: _Child
    number: int
    missing: set[int]  # pids


class Supervisor:
    """The parent of a family of processes.

    Args:
        listening: one socket for each process.
        work: what a process does in its place; it never returns.
        drain_seconds: how long running requests may take after SIGTERM.
    """

    def __init__(
        self, listening: Sequence[socket.socket], work: Callable[[Place], NoReturn], *, drain_seconds: float
    ) -> None:
        self._listening = listening
        self._work = work
        self._drain_seconds = drain_seconds
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}  # by pid
        self._departed: list[Snapshot] = []  # what those counted that have ended, one sum
        self._collecting: list[_Collecting] = []
        self._deaths: deque[float] = deque()
        self._drains_since: float | None = None
        self._ends_since: float | None = None
        self._failure: CannotStart | int | None = None
        self._is_told_to_drain = False
        self._looked_at = time.monotonic()
        self._wakes, self._woken = socket.socketpair()

    def run(self) -> None:
        """Until all have ended after SIGTERM or SIGINT.

        Raises:
            CannotStart: they die again and again.
            SystemExit: one could not start, and has said why.
        """
        self._wakes.setblocking(False)
        self._woken.setblocking(False)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        for told in (signal.SIGTERM, signal.SIGINT):
            signal.signal(told, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._wakes, selectors.EVENT_READ)
        for number in range(len(self._listening)):
            self._start(number)
        while self._children:
            self._wait()
            if self._is_told_to_drain:
                self._drain()
            self._bury()
            self._look_after()
        if isinstance(self._failure, CannotStart):
            raise self._failure
        if self._failure is not None:
            raise SystemExit(self._failure)

    # ---- events

    def _on_signal(self, *_: object) -> None:
        # it may come in the middle of anything; the loop is woken by the same signal
        self._is_told_to_drain = True

    def _wait(self) -> None:
        step = DRAIN_REPORT_SECONDS if self._drains_since is not None else REPORT_SECONDS / 2
        for key, _ in self._selector.select(step):
            child: _Child | None = key.data
            if child is None:
                self._wakes.recv(4096)
            else:
                self._hear(child)

    def _hear(self, child: _Child) -> None:
        try:
            heard = child.talk.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        if not heard or len(child.heard) > MOST_LINE_BYTES:
            self._selector.unregister(child.talk)  # it is ending; its exit says more
            return
        *lines, child.heard = (child.heard + heard).split(b"\n")
        for line in lines:
            self._take(child, json.loads(line))

    def _take(self, child: _Child, said: dict[str, Any]) -> None:
        match said["say"]:
            case "up":
                child.is_up = True
                if self._drains_since is not None:
                    self._order(child, {"do": "drain"})
            case "report":
                child.asked_at, child.reported_at = None, time.monotonic()
                child.metrics = said["metrics"]
                child.unfinished, child.drains = said["unfinished"], said["drains"]
                self._has_reported(child)
            case "collect":
                missing = {one.pid for one in self._children.values() if one.is_up}
                self._collecting.append(_Collecting(child=child, number=said["number"], missing=missing))
                for one in self._children.values():
                    # whoever is asked already will say something newer than what anybody was told
                    if one.is_up and one.asked_at is None:
                        self._ask(one)

    def _has_reported(self, child: _Child) -> None:
        for collecting in list(self._collecting):
            collecting.missing.discard(child.pid)
            if collecting.missing:
                continue
            self._collecting.remove(collecting)
            all_of_them = [*self._departed, *(one.metrics for one in self._children.values())]
            self._order(
                collecting.child, {"do": "collected", "number": collecting.number, "metrics": all_of_them}
            )

    # ---- children

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                self._forget_all(number)
                self._work(Place(number=number, listening=self._listening[number], talk=theirs))
            finally:
                os._exit(1)
        theirs.close()
        ours.settimeout(SEND_SECONDS)
        child = self._children[pid] = _Child(number=number, pid=pid, talk=ours)
        self._selector.register(ours, selectors.EVENT_READ, child)

    def _forget_all(self, number: int) -> None:
        """In a new process: whatever stayed open here would hide the end of others."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for one in (signal.SIGTERM, signal.SIGINT):
            # whoever signals the whole group means the supervisor, who tells us
            signal.signal(one, signal.SIG_IGN)
        self._selector.close()
        self._wakes.close()
        self._woken.close()
        for child in self._children.values():
            child.talk.close()
        for place, listening in enumerate(self._listening):
            if place != number:
                listening.close()

    def _bury(self) -> None:
        """Take the ended ones away, and replace them where that helps."""
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid)
            self._hear_last_words(child)
            self._departed = [snapshot(total([*self._departed, lasting(child.metrics)]))]
            for collecting in list(self._collecting):
                if collecting.child is child:
                    self._collecting.remove(collecting)
            self._has_reported(child)
            if self._ends_since is None:
                self._after_death(child, os.waitstatus_to_exitcode(status))

    def _hear_last_words(self, child: _Child) -> None:
        if child.talk in self._selector.get_map():
            self._selector.unregister(child.talk)
        child.talk.close()

    def _after_death(self, child: _Child, code: int) -> None:
        now = time.monotonic()
        if not child.is_up:
            self._failure = code if code > 0 else CannotStart(f"a process ended with {code} while it started")
            self._end()
            return
        if self._drains_since is not None:
            return
        log.error("process %d (pid %d) ended with %d; another takes its place", child.number, child.pid, code)
        self._deaths.append(now)
        while self._deaths[0] < now - DEATHS_SECONDS:
            self._deaths.popleft()
        if len(self._deaths) > MOST_DEATHS:
            self._failure = CannotStart(
                f"{len(self._deaths)} processes ended within {DEATHS_SECONDS:g} s, the last with {code}"
            )
            self._end()
        else:
            self._start(child.number)

    def _look_after(self) -> None:
        now = time.monotonic()
        slept, self._looked_at = now - self._looked_at, now
        pause = REPORT_SECONDS if self._drains_since is None else DRAIN_REPORT_SECONDS
        for child in self._children.values():
            if child.asked_at is None:
                if child.is_up and now >= child.reported_at + pause:
                    self._ask(child)
            elif slept > HANG_SECONDS / 2:
                # all of us were stopped; a process that could not run does not hang
                child.asked_at = now
            elif now > child.asked_at + HANG_SECONDS:
                log.error("process %d (pid %d) hangs and is killed", child.number, child.pid)
                os.kill(child.pid, signal.SIGKILL)
                child.asked_at = now
        if self._ends_since is not None:
            if now > self._ends_since + END_SECONDS:
                for pid in self._children:
                    os.kill(pid, signal.SIGKILL)
        elif self._drains_since is not None and (
            now > self._drains_since + self._drain_seconds
            or all(child.drains and not child.unfinished for child in self._children.values())
        ):
            self._end()

    def _drain(self) -> None:
        if self._drains_since is None:
            self._drains_since = time.monotonic()
            for child in self._children.values():
                self._order(child, {"do": "drain"})

    def _end(self) -> None:
        self._ends_since = time.monotonic()
        for child in self._children.values():
            self._order(child, {"do": "drain"})
            self._order(child, {"do": "end"})

    def _ask(self, child: _Child) -> None:
        child.asked_at = time.monotonic()
        self._order(child, {"do": "report"})

    def _order(self, child: _Child, order: dict[str, Any]) -> None:
        # it may be dead, or hang with a full buffer; both are noticed elsewhere
        with suppress(OSError):
            child.talk.sendall(json.dumps(order).encode() + b"\n")

"""One container as a session of processes: started, watched through a pidfd, ended as a whole, and its orphans reaped."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_CHUNK = 64 * 1024
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

#: Takes what a process wrote: the stream's name and the bytes; b"" when the stream ended.
Sink = Callable[[str, bytes], None]


class CannotStart(Exception):
    """The command cannot be started; the message is for the container's status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run, where and with which environment (nothing is inherited from the agent)."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    directory: Path


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Makes this process the parent of its descendants' orphans meanwhile, so that they can be reaped."""
    before = ctypes.c_int()
    _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        # Whoever runs an agent among other things reaps nobody after it.
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


class Process:
    """A running command and all that it starts, as long as that stays in its session.

    The kernel kills the command when the agent's thread dies (PR_SET_PDEATHSIG), so no pod outlives a
    crashed agent unnoticed.
    """

    def __init__(self, command: Command, sink: Sink) -> None:
        """Starts the command.

        Raises:
            CannotStart: there is no such program or directory, or it may not be executed.
        """
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        pipes = {"stdout": os.pipe(), "stderr": os.pipe()}
        try:
            self._popen = subprocess.Popen(  # noqa: S603  (running what the pod says is the agent's purpose)
                _resolved(command),
                cwd=command.directory,
                env=dict(command.env),
                stdin=subprocess.DEVNULL,
                stdout=pipes["stdout"][1],
                stderr=pipes["stderr"][1],
                start_new_session=True,
                preexec_fn=killed_with_parent,
            )
        except (OSError, ValueError) as error:
            for reading, _ in pipes.values():
                os.close(reading)
            raise CannotStart(f'cannot start "{" ".join(command.argv)}": {error}') from error
        finally:
            for _, writing in pipes.values():
                os.close(writing)
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._drained = [self._drain(name, reading) for name, (reading, _) in pipes.items()]

    async def wait(self) -> int:
        """The exit code; 128 and the signal's number when a signal ended it. The whole session is gone then."""
        code = await asyncio.shield(self._exited)
        # What the command left behind must not keep the pipes open for ever.
        await asyncio.wait(self._drained, timeout=1.0)
        for drained in self._drained:
            drained.cancel()
        return code

    def signal(self, number: signal.Signals) -> None:
        """Signals the command's process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def stop(self, grace_seconds: float) -> int:
        """SIGTERM, and SIGKILL for what still runs after the grace; the exit code."""
        if not self._exited.done():
            self.signal(signal.SIGTERM)
            await asyncio.wait([self._exited], timeout=max(grace_seconds, 0.0))
            if not self._exited.done():
                self.kill()
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL for every process of the session, whatever group it moved to."""
        self.signal(signal.SIGKILL)
        for stat in sessions().get(self.pid, ()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(stat.pid, signal.SIGKILL)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._popen.wait()
        self.kill()
        reap_orphans(self.pid)
        if not self._exited.done():
            self._exited.set_result(128 - code if code < 0 else code)

    def _drain(self, name: str, descriptor: int) -> asyncio.Future[None]:
        done: asyncio.Future[None] = self._loop.create_future()
        os.set_blocking(descriptor, False)

        def readable() -> None:
            try:
                chunk = os.read(descriptor, _CHUNK)
            except BlockingIOError:
                return
            self._sink(name, chunk)
            if not chunk and not done.done():
                done.set_result(None)

        def ended(_: asyncio.Future[None]) -> None:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)

        self._loop.add_reader(descriptor, readable)
        done.add_done_callback(ended)
        return done


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One line of the process table."""

    pid: int
    parent: int
    is_zombie: bool
    private_bytes: int


def sessions() -> dict[int, list[ProcessStat]]:
    """The machine's processes by session, with the memory that is their own (resident, not shared)."""
    table: dict[int, list[ProcessStat]] = {}
    for pid in _pids():
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            resident, shared = Path(f"/proc/{pid}/statm").read_bytes().split()[1:3]
        except OSError:
            continue
        # The command name stands in parentheses and may hold anything; the fields follow the last one.
        state, parent, _, session = stat[stat.rindex(b")") + 2 :].split()[:4]
        private = max(int(resident) - int(shared), 0) * _PAGE_BYTES
        table.setdefault(int(session), []).append(ProcessStat(pid, int(parent), state == b"Z", private))
    return table


def reap_orphans(session: int) -> None:
    """Reaps the zombies of a session that this process adopted, apart from the session's leader."""
    for stat in sessions().get(session, ()):
        if stat.is_zombie and stat.parent == os.getpid() and stat.pid != session:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(stat.pid, os.WNOHANG)


def kill_marked(markers: Collection[str]) -> int:
    """Kills every process whose environment holds one of `markers` (`NAME=value`); says how many there were."""
    wanted, killed = {marker.encode() for marker in markers}, 0
    for pid in _pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if not wanted.isdisjoint(environment):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        except OSError:
            continue
    return killed


def _pids() -> Iterator[int]:
    with os.scandir("/proc") as entries:
        yield from [int(entry.name) for entry in entries if entry.name.isdecimal()]


def killed_with_parent() -> None:
    """For `preexec_fn`: the kernel kills the new process when the thread that started it dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def ended_with_parent() -> None:
    """For `preexec_fn`: as `killed_with_parent`, but with SIGTERM, so that the process can clean up."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _resolved(command: Command) -> Sequence[str]:
    """The argv with its program found on the PATH of the container, not on the agent's."""
    program = command.argv[0]
    if "/" in program:
        return command.argv
    for folder in command.env.get("PATH", "").split(":"):
        candidate = Path(folder or ".") / program
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return (str(candidate), *command.argv[1:])
    raise FileNotFoundError(f"executable file not found in $PATH ({command.env.get('PATH', '')})")

"""A file that someone else replaces while we run: a mounted ConfigMap or Secret, read again when it changed."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2

T = TypeVar("T")


class WatchedFile(Generic[T]):
    """The last good content of a file.

    Its status is polled: the kubelet swaps a symbolic link above the file, which inotify does not report for the file
    itself. A file that goes away or cannot be parsed leaves the last good content in force, and says so in the log.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], T]) -> None:
        self.path = path
        self.current: T | None = None
        self._parse = parse
        self._seen: tuple[int, int, int] | None = None
        self._fault = ""

    def refresh(self) -> bool:
        """Look once; whether there is new content."""
        try:
            status = self.path.stat()
            signature = (status.st_ino, status.st_mtime_ns, status.st_size)
            if signature == self._seen:
                return False
            content = self._parse(self.path.read_bytes())
        except OSError as error:
            return self._report(f"cannot be read: {error.strerror or error}")
        except ValueError as error:
            self._seen = signature
            return self._report(f"cannot be understood: {error}")
        self._seen, self._fault = signature, ""
        if content == self.current:
            return False
        self.current = content
        return True

    async def watch(self, on_change: Callable[[T], None]) -> None:
        """Call `on_change` with every new content, for ever."""
        while True:
            if self.refresh() and self.current is not None:
                on_change(self.current)
            await asyncio.sleep(POLL_SECONDS)

    def _report(self, fault: str) -> bool:
        if fault != self._fault:
            level = logging.INFO if self.current is None else logging.WARNING
            log.log(level, "%s %s", self.path, fault)
        self._fault = fault
        return False

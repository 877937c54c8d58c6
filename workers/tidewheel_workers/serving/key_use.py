"""What the API keys of a gateway have used, in memory that all its processes share.

A gateway may be several processes behind one port, and a client's connections go to any of them; its key has one allowance all the
same. The table is made before they are forked. A row is a digest of the key, what is missing from its two buckets, and the requests
that each process has open for it. One lock guards all rows; the kernel frees it when its holder dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tidewheel_workers.serving.key_limits import Use, Used

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

#: Rows for the keys of two files of the largest size: of an old one that some process still uses, and a new one.
MOST_LIMITED_KEYS = 4096
ROWS = 2 * MOST_LIMITED_KEYS
_DIGEST = 16
_USED = struct.Struct("=4d")  # amount and time, of requests and of tokens
_FREE = bytes(_DIGEST)


class KeyUse:
    """The table, as one process of so many uses it."""

    def __init__(self, *, processes: int = 1, rows: int = ROWS) -> None:
        self._open = struct.Struct(f"={processes}I")
        self._rows = rows
        self._number = 0
        self._file = os.memfd_create("key-use")
        size = _DIGEST + _USED.size + self._open.size
        os.ftruncate(self._file, rows * size)
        # digests stand together, so that a row is found by one search
        self._memory = mmap.mmap(self._file, rows * size)
        self._places: dict[bytes, int] = {}  # where rows were found

    def join(self, number: int) -> None:
        """This is now the process of that number; the one that had it before has no request open any more."""
        self._number = number
        with self._locked():
            for row in range(self._rows):
                counts = list(self._open.unpack_from(self._memory, self._at_open(row)))
                counts[number] = 0
                self._open.pack_into(self._memory, self._at_open(row), *counts)

    @contextmanager
    def of(self, secret: bytes) -> Iterator[Use]:
        """A key's use, to look at and to change; nobody else does meanwhile."""
        digest = _digest(secret)
        with self._locked():
            row = self._find(digest)
            requests, requests_at, tokens, tokens_at = _USED.unpack_from(self._memory, self._at_used(row))
            counts = list(self._open.unpack_from(self._memory, self._at_open(row)))
            use = Use(
                requests=Used(requests, requests_at),
                tokens=Used(tokens, tokens_at),
                open_here=counts[self._number],
                open_elsewhere=sum(counts) - counts[self._number],
            )
            yield use
            counts[self._number] = use.open_here
            _USED.pack_into(
                self._memory,
                self._at_used(row),
                use.requests.amount,
                use.requests.at,
                use.tokens.amount,
                use.tokens.at,
            )
            self._open.pack_into(self._memory, self._at_open(row), *counts)

    def keep(self, secrets: Collection[bytes]) -> None:
        """Forget what other keys used."""
        known = {_digest(secret) for secret in secrets}
        with self._locked():
            for row in range(self._rows):
                digest = self._digest_at(row)
                if digest not in (_FREE, *known):
                    self._clear(row, _FREE)

    def _find(self, digest: bytes) -> int:
        row = self._places.get(digest)
        if row is not None and self._digest_at(row) == digest:
            return row
        found = self._search(digest)
        if found is None:
            found = self._search(_FREE)
            if found is None:
                found = min(range(self._rows), key=self._last_used)
            self._clear(found, digest)
        self._places[digest] = found
        return found

    def _search(self, digest: bytes) -> int | None:
        at = self._memory.find(digest, 0, self._rows * _DIGEST)
        while at >= 0 and at % _DIGEST:
            at = self._memory.find(digest, at + 1, self._rows * _DIGEST)
        return at // _DIGEST if at >= 0 else None

    def _clear(self, row: int, digest: bytes) -> None:
        self._memory[row * _DIGEST : (row + 1) * _DIGEST] = digest
        self._memory[self._at_used(row) : self._at_used(row) + _USED.size] = bytes(_USED.size)
        self._memory[self._at_open(row) : self._at_open(row) + self._open.size] = bytes(self._open.size)

    def _last_used(self, row: int) -> float:
        _, requests_at, _, tokens_at = _USED.unpack_from(self._memory, self._at_used(row))
        return max(float(requests_at), float(tokens_at))

    def _digest_at(self, row: int) -> bytes:
        return self._memory[row * _DIGEST : (row + 1) * _DIGEST]

    def _at_used(self, row: int) -> int:
        return self._rows * _DIGEST + row * _USED.size

    def _at_open(self, row: int) -> int:
        return self._rows * (_DIGEST + _USED.size) + row * self._open.size

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()[:_DIGEST]

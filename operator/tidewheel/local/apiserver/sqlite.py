"""The journal of a store in an SQLite file, written through on every change."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from tidewheel.local.apiserver.changes import Key


class SqliteJournal:
    """Objects in one table, the version counter in another.

    In WAL mode with synchronous=NORMAL a killed process loses nothing; only a power failure may take the last
    moments, and never the consistency of the file.

    Raises:
        sqlite3.Error: the file cannot be opened or is no such journal.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS objects (storage TEXT, namespace TEXT, name TEXT, encoded BLOB NOT NULL, "
            "PRIMARY KEY (storage, namespace, name)) WITHOUT ROWID"
        )
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY, version INTEGER NOT NULL)"
        )
        self._db.execute("INSERT OR IGNORE INTO counter VALUES (0, 0)")

    def version(self) -> int:
        """The last version that was given out."""
        return int(self._db.execute("SELECT version FROM counter").fetchone()[0])

    def objects(self, storage: str | None = None) -> Iterable[tuple[str, bytes]]:
        """Every object with its collection, or those of one collection."""
        if storage is None:
            return self._db.execute("SELECT storage, encoded FROM objects").fetchall()
        return self._db.execute("SELECT storage, encoded FROM objects WHERE storage=?", (storage,)).fetchall()

    def put(self, storage: str, key: Key, version: int, encoded: bytes) -> None:
        """Keep an object."""
        self._write(version, "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", (storage, *key, encoded))

    def delete(self, storage: str, key: Key, version: int) -> None:
        """Forget an object."""
        self._write(
            version, "DELETE FROM objects WHERE storage=? AND namespace=? AND name=?", (storage, *key)
        )

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def _write(self, version: int, statement: str, values: tuple[object, ...]) -> None:
        self._db.execute("BEGIN")
        self._db.execute(statement, values)
        self._db.execute("UPDATE counter SET version=?", (version,))
        self._db.execute("COMMIT")

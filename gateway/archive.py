"""Keeps replies that callers want to come back to: stored responses and chat completions, in one SQLite file.

Bounded in bytes and in age; the oldest go first. Every row has an owner (the API key's name) and is invisible
to others. Knows no dialect: bodies are JSON values. Called by the OpenAI routes, through threads.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

MAX_BYTES = 256 * 2**20
MAX_AGE_SECONDS = 30 * 86_400.0
SCHEMA = """
create table if not exists objects (
    number integer primary key autoincrement,
    kind text not null, id text not null unique, owner text not null, model text not null,
    created real not null, size integer not null, body blob not null, extra blob not null
);
create index if not exists objects_by_owner on objects (kind, owner, number);
"""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Stored:
    """One object: `body` is what a caller gets back, `extra` what only we need (the input of a response)."""

    id: str
    body: dict[str, Any]
    extra: Any


class Archive:
    """See the module's text. The file is made when the first object is put."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = MAX_BYTES,
        max_age: float = MAX_AGE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._turn = threading.Lock()  # SQLite wants one writer; these are not the event loop's threads

    async def put(self, kind: str, body: Mapping[str, Any], extra: Any, owner: str) -> None:
        """Adds or replaces the object with `body["id"]`, and drops what is too old or too much."""
        await self._do(lambda db: self._put(db, kind, body, extra, owner))

    async def get(self, kind: str, identity: str, owner: str) -> Stored | None:
        """The object, if it is there and `owner`'s."""
        return await self._do(lambda db: self._get(db, kind, identity, owner))

    async def delete(self, kind: str, identity: str, owner: str) -> bool:
        """Whether there was anything to delete."""
        where = "kind = ? and id = ? and owner = ?"
        return await self._do(
            lambda db: db.execute(f"delete from objects where {where}", (kind, identity, owner)).rowcount > 0
        )

    async def page(
        self,
        kind: str,
        owner: str,
        *,
        after: str | None,
        limit: int,
        descending: bool,
        model: str | None = None,
    ) -> list[Stored]:
        """Up to `limit` objects, oldest first or last, that follow the one with the id `after`."""
        return await self._do(lambda db: self._list(db, kind, owner, after, limit, descending, model))

    async def close(self) -> None:
        """Closes the file."""
        if self._connection is not None:
            await self._do(lambda db: db.close())
            self._connection = None

    async def _do(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        def run() -> Result:
            with self._turn:
                return work(self._open())

        return await asyncio.to_thread(run)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._path.chmod(0o600)
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = normal")
            connection.executescript(SCHEMA)
            self._connection = connection
        return self._connection

    def _put(
        self, db: sqlite3.Connection, kind: str, body: Mapping[str, Any], extra: Any, owner: str
    ) -> None:
        data, more = msgspec.json.encode(body), msgspec.json.encode(extra)
        row = (
            kind,
            body["id"],
            owner,
            body.get("model", ""),
            self._clock(),
            len(data) + len(more),
            data,
            more,
        )
        db.execute(
            "insert into objects (kind, id, owner, model, created, size, body, extra)"
            " values (?,?,?,?,?,?,?,?) on conflict (id) do update set"
            " body = excluded.body, extra = excluded.extra, size = excluded.size",
            row,
        )
        db.execute("delete from objects where created < ?", (self._clock() - self._max_age,))
        (total,) = db.execute("select coalesce(sum(size), 0) from objects").fetchone()
        while total > self._max_bytes:
            number, size = db.execute("select number, size from objects order by number limit 1").fetchone()
            db.execute("delete from objects where number = ?", (number,))
            total -= size

    def _get(self, db: sqlite3.Connection, kind: str, identity: str, owner: str) -> Stored | None:
        found = db.execute(
            "select id, body, extra from objects where kind = ? and id = ? and owner = ? and created >= ?",
            (kind, identity, owner, self._clock() - self._max_age),
        ).fetchone()
        return _stored(found) if found else None

    def _list(
        self,
        db: sqlite3.Connection,
        kind: str,
        owner: str,
        after: str | None,
        limit: int,
        descending: bool,
        model: str | None,
    ) -> list[Stored]:
        start = db.execute("select number from objects where id = ?", (after,)).fetchone() if after else None
        beyond = f"number {'<' if descending else '>'} ?" if start else "? is null"
        rows = db.execute(
            f"select id, body, extra from objects where kind = ? and owner = ? and {beyond}"
            f" and (? is null or model = ?) order by number {'desc' if descending else 'asc'} limit ?",
            (kind, owner, start[0] if start else None, model, model, limit),
        ).fetchall()
        return [_stored(row) for row in rows]


def _stored(row: tuple[str, bytes, bytes]) -> Stored:
    return Stored(row[0], msgspec.json.decode(row[1]), msgspec.json.decode(row[2]))

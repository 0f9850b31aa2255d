"""The archive of replies: owners, order, age and size."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from gateway.archive import Archive


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))  # type: ignore[arg-type]


def test_objects_are_their_owners_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        archive = Archive(tmp_path / "state" / "replies.sqlite")
        await archive.put("response", {"id": "a", "model": "m"}, [1, 2], "anna")
        found = await archive.get("response", "a", "anna")
        assert found is not None
        assert (found.body, found.extra) == ({"id": "a", "model": "m"}, [1, 2])
        assert await archive.get("response", "a", "bert") is None
        assert await archive.get("chat.completion", "a", "anna") is None
        assert not await archive.delete("response", "a", "bert")
        assert await archive.delete("response", "a", "anna")
        assert await archive.get("response", "a", "anna") is None
        await archive.close()

    run(scenario)


def test_pages_follow_each_other_in_both_orders(tmp_path: Path) -> None:
    async def scenario() -> None:
        archive = Archive(tmp_path / "replies.sqlite")
        for name in "abcde":
            await archive.put("k", {"id": name, "model": "m1" if name < "c" else "m2"}, None, "")

        async def ids(after: str | None, descending: bool, model: str | None = None) -> str:
            rows = await archive.page("k", "", after=after, limit=2, descending=descending, model=model)
            return "".join(row.id for row in rows)

        assert [await ids(None, False), await ids("b", False), await ids("d", False)] == ["ab", "cd", "e"]
        assert [await ids(None, True), await ids("d", True)] == ["ed", "cb"]
        assert await ids(None, False, "m2") == "cd"
        await archive.close()

    run(scenario)


def test_the_oldest_go_when_it_is_too_much_or_too_old(tmp_path: Path) -> None:
    async def scenario() -> None:
        now = 0.0
        archive = Archive(tmp_path / "replies.sqlite", max_bytes=3000, max_age=100, clock=lambda: now)
        for number in range(6):
            await archive.put("k", {"id": str(number), "text": "x" * 900}, None, "")
        kept = await archive.page("k", "", after=None, limit=9, descending=False)
        assert [row.id for row in kept] == ["3", "4", "5"]
        now = 101.0
        assert await archive.get("k", "5", "") is None
        await archive.put("k", {"id": "new"}, None, "")
        assert [row.id for row in await archive.page("k", "", after=None, limit=9, descending=False)] == [
            "new"
        ]
        await archive.close()

    run(scenario)


def test_an_object_outlives_the_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "replies.sqlite"
        first = Archive(path)
        await first.put("k", {"id": "a", "metadata": {}}, None, "")
        await first.put("k", {"id": "a", "metadata": {"b": "c"}}, None, "")
        await first.close()
        second = Archive(path)
        found = await second.get("k", "a", "")
        assert found is not None
        assert found.body["metadata"] == {"b": "c"}
        await second.close()

    run(scenario)

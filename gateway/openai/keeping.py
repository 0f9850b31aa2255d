"""What the routes of stored objects share: whose they are, pages of them, saving at the end of a stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import Request

from gateway.auth import Key
from gateway.errors import BadRequest
from gateway.types import Event, Failed


def owner_of(request: Request) -> str:
    """Whose stored objects a caller sees."""
    key: Key | None = getattr(request.state, "key", None)
    return key.name if key is not None else ""


def page(items: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """Some of `items` as a list object."""
    ids = [item.get("id") for item in items]
    start = ids.index(after) + 1 if after in ids else 0
    shown = items[start : start + limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0].get("id") if shown else None,
        "last_id": shown[-1].get("id") if shown else None,
        "has_more": start + limit < len(items),
    }


def page_size(text: str | None) -> int:
    """The `limit` of a list request, up to 100; nothing is a page too."""
    if text is None:
        return 20
    if not (text.isascii() and text.isdigit() and len(text) < 4 and int(text) <= 100):
        raise BadRequest("limit must be between 0 and 100", param="limit")
    return int(text)


async def saved(events: AsyncIterator[Event], save: Callable[[], Awaitable[None]]) -> AsyncIterator[Event]:
    """The same events; saves after the last one, before the caller hears that all is complete."""
    async with contextlib.aclosing(events):  # type: ignore[type-var]
        async for event in events:
            yield event
            if isinstance(event, Failed):
                return
    await save()

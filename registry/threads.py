"""Work beside the caller's, in threads and tasks, never left running behind a caller that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs the function in a thread. When cancelled, waits for it to end first: whoever cleans up after
    it (closes its file, drops its lease) must not pull them from under a thread still at work."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                continue
        if not running.cancelled():
            running.exception()  # seen: the cancellation is what the caller hears of
        raise


async def gathered(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in order; the first failure ends the others and is raised once they have ended."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks) if tasks else None

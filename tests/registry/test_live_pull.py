"""That `make live-pull` does what it says, as far as the fake hub can tell: it runs on few machines."""

from __future__ import annotations

import asyncio

import pytest

from registry.errors import NotFound
from registry.reference import Reference
from registry.store import Store
from tests.registry.fakehub import FakeHub, Fault
from tests.registry.hubs import BIG, clean, puller
from tests.registry.live_pull import INTERRUPTED_AT, MODELS, one


def run(store: Store, hub: FakeHub, reference: str) -> str:
    async def check() -> str:
        async with puller(store, hub) as made:
            return await one(made, store, reference)

    return asyncio.run(check())


def test_a_pull_is_broken_off_and_brought_to_its_end(store: Store, hub: FakeHub) -> None:
    name = hub.add_oci("me/big", [("model", BIG)])
    hub.always["/blobs/"] = Fault(delay=0.02)
    told = run(store, hub, name)
    assert told.startswith(f"{len(BIG) + 2:,} bytes in 1 files; ")
    left = int(told.split("; ")[1].split(" ")[0].replace(",", ""))
    assert left <= len(BIG) + 2 - INTERRUPTED_AT
    # What was on its way in the connections that were cut counts as sent too, up to their buffers.
    assert hub.sent("/blobs/") < 2 * len(BIG)
    clean(store)


def test_what_is_not_there_fails(store: Store, hub: FakeHub) -> None:
    with pytest.raises(NotFound):
        run(store, hub, f"{hub.netloc}/me/ghost")


def test_every_kind_of_source_is_among_them() -> None:
    kinds = {Reference.parse(text).kind for text in MODELS.values()}
    assert kinds == {"oci", "huggingface", "url", "kaggle"}

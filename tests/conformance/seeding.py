"""pytest plugin for openai-python's own tests: puts real replies of ours under the ids those tests ask for.

Their suite was written for a server that invents an answer to everything, so it reads and deletes objects
that nobody ever made. Runs in that suite's environment: knows its base URL and our archive's file, no more.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

CHAT_IDS = ("completion_id",)
RESPONSE_IDS = ("response_id", "resp_677efb5139a88190b512bc3fef8e535d", "previous_response_id", "resp_123")
ASK = {"model": "gpt-6-astra", "store": True, "metadata": {"foo": "string"}}


def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A reply of the server under test."""
    address = f"{os.environ['TEST_API_BASE_URL']}{path}"
    request = urllib.request.Request(
        address, json.dumps(ASK | body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def response_over(identity: str) -> None:
    """Waits until a background response has been made."""
    address = f"{os.environ['TEST_API_BASE_URL']}/responses/{identity}"
    for _ in range(100):
        with urllib.request.urlopen(address, timeout=30) as reply:
            if json.load(reply)["status"] == "completed":
                return
        time.sleep(0.05)
    raise RuntimeError(f"{identity} was not completed within five seconds")


@pytest.fixture(scope="session")
def originals() -> dict[str, str]:
    """An id the tests ask for, and the id of the reply that will stand there."""
    chat = post("/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})["id"]
    response = post("/responses", {"input": "Hi", "background": True})["id"]
    response_over(response)
    return dict.fromkeys(CHAT_IDS, chat) | dict.fromkeys(RESPONSE_IDS, response)


@pytest.fixture(scope="session")
def archive() -> Iterator[sqlite3.Connection]:
    with sqlite3.connect(os.environ["GEMMULE_ARCHIVE"], isolation_level=None, timeout=10) as opened:
        yield opened
    opened.close()


@pytest.fixture(autouse=True)
def seeded(originals: dict[str, str], archive: sqlite3.Connection) -> None:
    """Before each test every object is there, whatever the test before deleted."""
    for wanted, made in originals.items():
        archive.execute(
            "insert or ignore into objects (kind, id, owner, model, created, size, body, extra)"
            " select kind, ?, owner, model, created, size, cast(replace(body, ?, ?) as blob), extra"
            " from objects where id = ?",
            (wanted, made, wanted, made),
        )

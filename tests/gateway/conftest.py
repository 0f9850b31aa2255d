"""The live server of the scripted model, shared by all tests that only talk to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.live import LiveServer, live_server

MODEL = "scripted"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server without keys on loopback."""
    with live_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    """A plain HTTP client of the live server."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the live server; it does not retry, so that a fault is seen once."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=30) as made:
        yield made


def script(*steps: Any, **fields: Any) -> dict[str, Any]:
    """`extra_body` that tells the scripted engine what to emit: texts, or steps as dicts."""
    made = [{"text": step} if isinstance(step, str) else step for step in steps]
    return {"script": json.dumps({"steps": made} | fields)}

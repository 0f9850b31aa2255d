"""What a load waits for can be seen while it waits."""

from __future__ import annotations

import threading
import time

import pytest

from tests.whole.conftest import Served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_ps_tells_how_far_a_load_is_and_run_says_it(served: Served) -> None:
    loading = threading.Thread(target=served.post, args=("/api/generate", {"model": "bud"}))
    loading.start()
    seen: set[str] = set()
    while loading.is_alive():
        reply = served.get("/api/ps").json()
        for row in reply.get("loading", ()):
            assert row["name"] == row["model"] == "bud:latest"
            seen.add(row.get("stage", ""))
        time.sleep(0.02)
    loading.join()
    assert seen & {"reading", "compiling"}
    reply = served.get("/api/ps").json()
    assert [row["name"] for row in reply["models"]] == ["bud:latest"]
    assert "loading" not in reply

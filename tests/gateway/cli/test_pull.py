"""`gemmule pull` as a user sees it: what it says before the first byte, and where it stops."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.main import main
from gateway.cli.transfer import plan_text
from tests.gateway.live import LiveServer
from tests.registry.conftest import gguf_bytes
from tests.registry.fakehub import FakeHub, Fault

BUD = (Path(__file__).resolve().parents[3] / "registry" / "bundled" / "bud.gguf").read_bytes()
PLAN = {
    "total_bytes": 4_000_000_000, "download_bytes": 4_000_000_000, "sizes_known": True,
    "disk_free_bytes": 60_000_000_000, "fits_disk": True,
    "memory_bytes": 5_000_000_000, "memory_budget_bytes": 6_000_000_000, "context_length": 8192,
    "fits_memory": True,
}  # fmt: skip
CHOICES = {"Q4_K_M": 4_000_000_000, "Q2_K": 2_000_000_000}
Pull = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        yield running


@pytest.fixture
def pull(server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pull:
    """Runs `gemmule pull ...` in this process; exit code, standard output, standard error."""
    monkeypatch.setenv("GEMMULE_HOST", server.url)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["pull", *arguments])
        written = capsys.readouterr()
        return code, written.out, written.err

    return run


def lines(text: str) -> dict[str, str]:
    return {line[:14].strip(): line[14:] for line in text.splitlines()}


@pytest.mark.parametrize(
    ("changes", "row", "text"),
    [
        ({}, "download", "4 GB"),
        ({}, "disk", "60 GB free, fits"),
        ({}, "memory", "5 GB of 6 GB with a context of 8192 tokens, fits"),
        ({"download_bytes": 1_000_000_000}, "download", "1 GB of 4 GB"),
        ({"download_bytes": 0}, "download", "nothing: it is here"),
        ({"sizes_known": False}, "download", "at least 4 GB: the source does not tell all sizes"),
        ({"fits_disk": False}, "disk", "60 GB free, does not fit"),
        (
            {"fits_memory": False},
            "memory",
            "5 GB of 6 GB with a context of 8192 tokens, does not fit; "
            "registries do not list other sizes, its page does",
        ),
        ({"obstacle": "no such family"}, "memory", "cannot be served here: no such family"),
        (
            {"quantizations": CHOICES, "quantization": "Q4_K_M", "largest_that_fits": "Q4_K_M"},
            "quantization",
            "Q4_K_M, the largest that fits",
        ),
        (
            {"quantizations": CHOICES, "quantization": "Q4_K_M", "largest_that_fits": "Q2_K"},
            "quantization",
            "Q4_K_M; the largest that fits is Q2_K (2 GB): https://hf.co/org/fox:Q2_K@v1",
        ),
        (
            {"quantizations": CHOICES, "quantization": "Q4_K_M", "fits_memory": False},
            "quantization",
            "Q4_K_M; none is known to fit",
        ),
    ],
)
def test_the_words_for_a_plan(changes: dict[str, Any], row: str, text: str) -> None:
    assert lines(plan_text(PLAN | changes, "https://hf.co/org/fox:q4_k_m@v1"))[row] == text


def test_memory_that_cannot_be_told_beforehand() -> None:
    plan = {key: value for key, value in PLAN.items() if "memory" not in key}
    assert lines(plan_text(plan, "fox"))["memory"] == "known once it is here"


def test_a_dry_run_fetches_headers_only(pull: Pull, hub: FakeHub, server: LiveServer) -> None:
    name = hub.add_oci("me/bud", [("model", BUD + bytes(40 << 20))])
    code, out, err = pull(name, "--dry-run")
    assert (code, err) == (0, "")
    assert lines(out)["download"] == "45 MB"
    assert lines(out)["memory"].endswith("tokens, fits")
    assert hub.sent("/blobs/") == 1 << 20
    assert not list((server.folder / "models" / "staging").iterdir())


def test_a_pull_says_the_same_and_goes_on(pull: Pull, hub: FakeHub) -> None:
    name = hub.add_oci("me/fox", [("model", gguf_bytes(1, 5000))])
    code, out, err = pull(name)
    assert (code, out) == (0, "")
    assert lines(err)["download"] == "5.1 KB"
    assert lines(err)["memory"].startswith("cannot be served here: ")
    assert pull(name) == (0, "", "")


def test_a_dry_run_of_what_is_not_there_or_ships_with_us(pull: Pull, hub: FakeHub) -> None:
    code, out, err = pull(f"{hub.netloc}/me/ghost", "--dry-run")
    assert (code != 0, out) == (True, "")
    assert "has no model" in err
    name = hub.add_oci("me/hare", [("model", gguf_bytes(3, 5000))])
    assert pull(name)[0] == 0
    hub.always["/manifests/"] = Fault(status=503)
    code, out, err = pull(name, "--dry-run")
    assert (code != 0, out) == (True, "")
    assert "status 503" in err
    assert pull("scripted", "--dry-run") == (0, "'scripted' comes with gemmule\n", "")


def test_the_log_tells_no_addresses(pull: Pull, hub: FakeHub, server: LiveServer) -> None:
    name = hub.add_oci("me/owl", [("model", gguf_bytes(2, 5000))])
    assert pull(name)[0] == 0
    assert not [line for line in server.lines if "HTTP Request" in line]


def test_a_pull_may_load_the_model_at_once(pull: Pull, server: LiveServer) -> None:
    code, out, err = pull("scripted", "--warm")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"loaded 'scripted' in \d+\.\d s; what was compiled is kept for later starts\n", out)
    with urllib.request.urlopen(f"{server.url}/api/ps", timeout=10) as reply:
        assert "scripted" in reply.read().decode()


def test_the_api_gives_the_plan_as_one_object_too(server: LiveServer, hub: FakeHub) -> None:
    name = hub.add_oci("me/lynx", [("model", gguf_bytes(4, 5000))])
    body = {"model": name, "stream": False, "dry_run": True}
    request = urllib.request.Request(f"{server.url}/api/pull", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as reply:
        found = json.load(reply)
    total = len(gguf_bytes(4, 5000)) + len(b"{}")
    assert found["status"] == "success"
    assert (found["plan"]["total_bytes"], found["plan"]["fits_disk"]) == (total, True)
    assert found["plan"]["obstacle"]

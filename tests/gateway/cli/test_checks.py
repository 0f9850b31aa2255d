"""What doctor finds, each on a machine that has the fault."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gateway.cli import checks
from gateway.cli.checks import Check
from gateway.cli.connect import server_url
from gateway.cli.doctor import line
from gateway.cli.errors import CommandError
from gateway.client import Client
from gateway.memory import Gpu
from gateway.settings import Settings
from tests.gateway.live import LiveServer

CARD = Gpu(0, "NVIDIA H200", "570.1", 150_000_000_000, 149_000_000_000)


@pytest.mark.parametrize(
    ("gpus", "cuda", "wanted", "state", "text"),
    [
        ([], False, "auto", "ok", "CPU, "),
        ([], False, "gpu", "fail", "nvidia-smi finds no GPU"),
        ([CARD], True, "auto", "ok", "NVIDIA H200, driver 570.1, 150 GB"),
        ([CARD, CARD], True, "auto", "ok", "and 1 more"),
        ([CARD], False, "auto", "warn", "unused: JAX has no CUDA support here"),
        ([CARD], True, "cpu", "warn", "unused"),
    ],
)
def test_a_card_that_is_not_used_is_a_warning(
    gpus: list[Gpu], cuda: bool, wanted: str, state: str, text: str
) -> None:
    check = checks.device_check(gpus, cuda, wanted)
    assert check.state == state
    assert text in check.detail
    assert (check.fix is None) == (state == "ok")


@pytest.mark.parametrize(("available", "state"), [(10**10, "ok"), (10**9, "warn"), (10**8, "fail")])
def test_memory(available: int, state: str) -> None:
    assert checks.memory_check(available, 10**11).state == state


@pytest.mark.parametrize(
    ("environment", "state"),
    [
        ({}, "ok"),
        ({"HTTP_PROXY": "http://proxy:3128"}, "warn"),
        ({"https_proxy": "http://proxy:3128", "NO_PROXY": "example.org"}, "warn"),
        ({"HTTP_PROXY": "http://proxy:3128", "no_proxy": "localhost, 127.0.0.1"}, "ok"),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, "ok"),
    ],
)
def test_a_proxy_that_swallows_local_requests(environment: dict[str, str], state: str) -> None:
    check = checks.proxy_check(environment)
    assert check.state == state
    assert "3128" not in check.detail, "a proxy's address may hold a password"


def test_kernels_that_were_not_built(tmp_path: Path) -> None:
    assert (
        checks.kernels_check(tmp_path, None).fix
        == "install a C++ compiler (g++ or clang++), then `make setup`"
    )
    assert checks.kernels_check(tmp_path, "/usr/bin/g++").fix == "run `make setup` again"
    (tmp_path / "_kernels.so").touch()
    assert checks.kernels_check(tmp_path, None).state == "ok"


def test_who_answers_at_the_port(server: LiveServer) -> None:
    settings = Settings.read({"GEMMULE_HOST": server.url.removeprefix("http://")})
    assert "answered by gemmule" in checks.port_check(Client(server.url), settings).detail
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        held.settimeout(0)
        assert checks.holder(port).startswith(("python", "pytest"))
    free = Settings.read({"GEMMULE_HOST": f"127.0.0.1:{port}"})
    assert "is free" in checks.port_check(Client(f"http://127.0.0.1:{port}"), free).detail


def test_the_store(tmp_path: Path) -> None:
    assert "is not there yet" in checks.store_check(tmp_path / "none", ()).detail
    (tmp_path / "models").mkdir()
    assert checks.store_check(tmp_path / "models", ()).detail == f"{tmp_path / 'models'}, 0 models"
    broken = tmp_path / "models" / "manifests" / "registry.ollama.ai" / "library" / "x"
    broken.mkdir(parents=True)
    (broken / "latest").write_text("{")
    check = checks.store_check(tmp_path / "models", ())
    assert (check.state, check.fix) == ("warn", "run `gemmule fsck` for the list")


def test_lines_and_fixes() -> None:
    assert line(Check("disk", "ok", "fine"), False) == "ok    disk      fine"
    shown = line(Check("disk", "fail", "full", "free some"), False)
    assert shown == "fail  disk      full\n                fix: free some"
    assert "\x1b[31mfail" in line(Check("disk", "fail", "full"), True)


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "http://127.0.0.1:11434"),
        ({"OLLAMA_HOST": "0.0.0.0"}, "http://127.0.0.1:11434"),
        ({"GEMMULE_HOST": ":8080", "OLLAMA_HOST": "elsewhere"}, "http://127.0.0.1:8080"),
        ({"GEMMULE_HOST": "http://box"}, "http://box:80"),
        ({"GEMMULE_HOST": "https://box/prefix/"}, "https://box:443/prefix"),
        ({"GEMMULE_HOST": "[::]:1"}, "http://[::1]:1"),
        ({"GEMMULE_HOST": "unix:///run/gemmule.sock"}, "unix:///run/gemmule.sock"),
    ],
)
def test_where_commands_look_for_the_server(environment: dict[str, str], url: str) -> None:
    assert server_url(environment) == url


def test_an_address_that_is_none() -> None:
    with pytest.raises(CommandError, match="GEMMULE_HOST: ") as caught:
        server_url({"GEMMULE_HOST": "box:port"})
    assert caught.value.code == 2

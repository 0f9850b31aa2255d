"""What doctor looks at on this machine: one function for each line of its report, with a fix where needed.

Every check gets what it reads (environment, settings, probes) as arguments and returns a `Check`; none
starts a device, loads JAX or changes anything.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gateway.cli.output import human_bytes
from gateway.client import Client, ClientError

if TYPE_CHECKING:
    from gateway.memory import Gpu
    from gateway.settings import Settings

State = Literal["ok", "warn", "fail"]
OLDEST_PYTHON = (3, 11)
LOW_DISK, NO_DISK = 10 * 10**9, 10**9
LOW_MEMORY, NO_MEMORY = 2 * 10**9, 5 * 10**8
PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy")


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, how it is, and the way out when it is not well."""

    name: str
    state: State
    detail: str
    fix: str | None = None


def python_check() -> Check:
    version = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return Check("python", "fail", version, "install Python 3.11 or newer and run `make setup` again")
    return Check("python", "ok", version)


def device_check(gpus: list[Gpu], cuda: bool, wanted: str) -> Check:
    """`wanted` is GEMMULE_DEVICE; `cuda` whether JAX's CUDA plugin is installed."""
    if not gpus:
        if wanted == "gpu":
            return Check(
                "device",
                "fail",
                "GEMMULE_DEVICE is gpu, but nvidia-smi finds no GPU",
                "install the NVIDIA driver, or unset GEMMULE_DEVICE",
            )
        return Check("device", "ok", f"CPU, {os.cpu_count()} logical cores ({platform.machine()})")
    first = gpus[0]
    shown = f"{first.name}, driver {first.driver}, {human_bytes(first.total_bytes)}"
    shown += f" and {len(gpus) - 1} more" if len(gpus) > 1 else ""
    if wanted == "cpu":
        return Check("device", "warn", f"{shown}, unused", "unset GEMMULE_DEVICE to use the GPU")
    if not cuda:
        return Check(
            "device",
            "warn",
            f"{shown}, unused: JAX has no CUDA support here",
            "run `make setup` again, or install jax[cuda12]",
        )
    return Check("device", "ok", shown)


def jax_check(cuda: bool) -> Check:
    try:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib")]
    except importlib.metadata.PackageNotFoundError as error:
        return Check("jax", "fail", f"{error.name} is not installed", "run `make setup` again")
    build = "CUDA" if cuda else "CPU"
    return Check("jax", "ok", f"{', '.join(versions)} ({build} build)")


def kernels_check(folder: Path, compiler: str | None) -> Check:
    """`folder` is where the build leaves the native kernels."""
    found = sorted([*folder.glob("*.so"), *folder.glob("*.pyd"), *folder.glob("*.dylib")])
    if found:
        return Check("kernels", "ok", f"native, {found[0].name}")
    fix = (
        "run `make setup` again" if compiler else "install a C++ compiler (g++ or clang++), then `make setup`"
    )
    return Check("kernels", "warn", "not built: plain JAX serves, several times slower on a CPU", fix)


def port_check(client: Client, settings: Settings) -> Check:
    """Who answers at the configured address, if anybody."""
    where = client.url
    try:
        version = client.server_version()
    except ClientError:
        return _free_or_foreign(where, settings.address)
    if version is None:
        return Check(
            "port",
            "warn",
            f"{where} is answered by an Ollama",
            "stop it, or give gemmule another port: GEMMULE_HOST=127.0.0.1:11435",
        )
    return Check("port", "ok", f"{where} is answered by gemmule {version}")


def _free_or_foreign(where: str, address: tuple[str, int]) -> Check:
    host, port = address
    try:
        with socket.create_connection((host, port), timeout=1):
            pass
    except OSError:
        return Check("port", "ok", f"{where} is free; `gemmule serve` will listen there")
    return Check(
        "port",
        "fail",
        f"{where} is held by {holder(port)}, which is no model server",
        "stop it, or choose another port: GEMMULE_HOST=127.0.0.1:11435",
    )


def holder(port: int) -> str:
    """The program that listens on a port, as far as this user may know."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == "LISTEN":
                pid = connection.pid
                return f"{psutil.Process(pid).name()} (pid {pid})" if pid else "a program of another user"
    except (psutil.Error, OSError):
        pass
    return "another program"


def disk_check(store: Path) -> Check:
    place = next((folder for folder in (store, *store.parents) if folder.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    detail = f"{human_bytes(free)} free for {store}"
    fix = "free some space, or point GEMMULE_MODELS at a larger disk"
    if free < NO_DISK:
        return Check("disk", "fail", detail, fix)
    return Check("disk", "warn" if free < LOW_DISK else "ok", detail, fix if free < LOW_DISK else None)


def memory_check(available: int, total: int) -> Check:
    detail = f"{human_bytes(available)} available of {human_bytes(total)}"
    fix = "close other programs, or run smaller or more strongly quantized models"
    if available < NO_MEMORY:
        return Check("memory", "fail", detail, fix)
    return Check(
        "memory", "warn" if available < LOW_MEMORY else "ok", detail, fix if available < LOW_MEMORY else None
    )


def store_check(models: Path, extra: tuple[Path, ...]) -> Check:
    """Opens the store as the server does and counts what it lists."""
    from registry.errors import RegistryError
    from registry.store import Store

    others = tuple(folder for folder in extra if folder.expanduser().is_dir())
    if not models.is_dir():
        return Check("store", "ok", f"{models} is not there yet; `gemmule serve` makes it")
    try:
        store = Store.open(models, others)
        found = store.list()
    except (RegistryError, OSError) as error:
        return Check("store", "fail", f"{models}: {error}", "point GEMMULE_MODELS at a folder of yours")
    detail = f"{models}, {len(found)} model{'s' if len(found) != 1 else ''}"
    detail += f", reading {', '.join(map(str, others))} too" if others else ""
    problems = store.problems()
    if problems:
        return Check("store", "warn", f"{detail}, {len(problems)} damaged", "run `gemmule fsck` for the list")
    if not store.writable:
        return Check("store", "warn", f"{detail}, read-only", "check who owns the folder")
    return Check("store", "ok", detail)


def proxy_check(environment: Mapping[str, str]) -> Check:
    """A proxy without an exception for this machine swallows what local clients send here."""
    lowered = {name.lower(): value for name, value in environment.items()}
    proxies = [name for name in PROXY_NAMES if lowered.get(name)]
    if not proxies:
        return Check("proxy", "ok", "none set")
    exceptions = [part.strip() for part in lowered.get("no_proxy", "").split(",")]
    shown = ", ".join(name.upper() for name in proxies)
    if "*" in exceptions or {"localhost", "127.0.0.1"} <= set(exceptions):
        return Check("proxy", "ok", f"{shown} set, this machine excepted")
    return Check(
        "proxy",
        "warn",
        f"{shown} set, and NO_PROXY does not except this machine",
        "export NO_PROXY=localhost,127.0.0.1 where clients run",
    )

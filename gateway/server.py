"""Runs the gateway: one process on TCP and, if wanted, a Unix socket, until it is told to stop.

The only module that reads the environment. `serve(settings)` is what `gemmule serve` calls; it returns an
exit code. At SIGTERM or Ctrl-C the server takes nothing new, lets streams finish for a while, ends the
rest with an error event, and unloads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import uvicorn

from engines.base import InvalidRequest
from gateway import __version__
from gateway.app import create_app, guarded
from gateway.auth import check_exposure, read_keys
from gateway.catalog import ServedModel
from gateway.connections import Connection
from gateway.gateway import Gateway
from gateway.memory import Device, choose_device, find_gpus, has_cuda_build
from gateway.settings import Settings, SettingsError

USAGE_ERROR = 2
BACKLOG = 2048
LAST_WORDS_SECONDS = 3.0
"""Between the last events of streams and the end of the process."""

log = logging.getLogger("gemmule.server")


class StartError(Exception):
    """The server cannot start; the text says why and what to do."""


def main() -> int:
    """`python -m gateway.server`."""
    try:
        settings = Settings.read(os.environ)
    except SettingsError as fault:
        say(f"gemmule: {fault}")
        return USAGE_ERROR
    return serve(settings)


def serve(settings: Settings, built_in: Mapping[str, ServedModel] | None = None) -> int:
    """Serves until a signal; the exit code is 0, or 2 when it could not start."""
    logging.basicConfig(
        level=logging.DEBUG if settings.debug else logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it tells whole addresses, signatures and all
    try:
        check_exposure(settings, read_keys(settings))
        device = find_device(settings)
        sockets = open_sockets(settings)
    except (StartError, SettingsError) as fault:
        say(f"gemmule: {fault}")
        return USAGE_ERROR
    try:
        gateway = Gateway.open(settings, device, built_in, os.environ)
        if settings.frames is not None:
            gateway.frames.bind(settings.frames)
        publish_bundled(gateway)
        say_where(settings, device, gateway, sockets[0].getsockname()[1])
        return run(gateway, sockets)
    except InvalidRequest as fault:
        say(f"gemmule: GEMMULE_FRAMES: {fault}")
        return USAGE_ERROR
    finally:
        for each in sockets:
            each.close()
        if settings.socket is not None:
            settings.socket.unlink(missing_ok=True)


def run(gateway: Gateway, sockets: list[socket.socket]) -> int:
    """Serves on open sockets; returns once everything is ended."""
    config = uvicorn.Config(
        guarded(create_app(gateway)),
        http=Connection,
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(gateway.settings.drain + LAST_WORDS_SECONDS) + 1,
        backlog=BACKLOG,
        server_header=False,
    )
    server = _Server(config, gateway)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=sockets))
    return 0


class _Server(uvicorn.Server):
    """Drains: the first signal stops new work, and what still runs after a while is broken off politely."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._ending: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """uvicorn raises the signal again when it is done, which would hide our exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        yield

    def _on_signal(self, number: int) -> None:
        self._gateway.draining = True
        self.handle_exit(number, None)
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._break_off())

    async def _break_off(self) -> None:
        await asyncio.sleep(self._gateway.settings.drain)
        await self._gateway.manager.close()


def find_device(settings: Settings) -> Device:
    """The device to serve on; raises `StartError` when the one demanded is not there."""
    gpus = [] if settings.device == "cpu" else find_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    cuda = bool(gpus) and has_cuda_build()
    try:
        return choose_device(settings.device, settings.memory, settings.gpu_overhead, gpus, cuda)
    except ValueError as fault:
        raise StartError(str(fault)) from None


def open_sockets(settings: Settings) -> list[socket.socket]:
    """Listening sockets for the address and, if set, the Unix socket; raises `StartError`."""
    sockets = [_open_tcp(settings)]
    if settings.socket is not None:
        sockets.append(_open_unix(settings.socket))
    return sockets


def _open_tcp(settings: Settings) -> socket.socket:
    host, port = settings.address
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as fault:
        raise StartError(f"cannot resolve {host!r}: {fault.strerror}; set GEMMULE_HOST=127.0.0.1") from None
    listening = socket.socket(family, kind, protocol)
    if os.name == "posix":
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as fault:
        listening.close()
        raise StartError(_bind_fault(host, port, fault)) from None
    return listening


def _bind_fault(host: str, port: int, fault: OSError) -> str:
    if isinstance(fault, PermissionError):
        return f"may not listen on port {port}; set GEMMULE_HOST={host}:11434"
    holder = holder_of(port)
    if holder is None and "in use" not in str(fault):
        return f"cannot listen on {host}:{port}: {fault.strerror}"
    by = f" by {holder}" if holder else ""
    remedy = f"GEMMULE_HOST={host}:{port + 1}"
    return f"port {port} is taken{by}; stop it, or set {remedy} for the server and for commands"


def holder_of(port: int) -> str | None:
    """Name and process id of whoever listens on `port`, where the system tells us."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            ours = connection.laddr and connection.laddr.port == port
            if ours and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return None


def _open_unix(path: Path) -> socket.socket:
    """A 0600 socket; a stale file of a server that is gone is replaced, a live one is not."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode) or _answers(path):
            raise StartError(f"{path} exists and is in use; set GEMMULE_SOCKET to another path")
        path.unlink()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    old = os.umask(0o177)
    try:
        listening.bind(str(path))
    except OSError as fault:
        raise StartError(f"cannot listen on {path}: {fault.strerror}") from None
    finally:
        os.umask(old)
    listening.listen(BACKLOG)
    return listening


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def publish_bundled(gateway: Gateway) -> None:
    """Puts the model that ships with the program into the store, the first time."""
    from registry.bundled import ensure_bundled

    try:
        ensure_bundled(gateway.store)
    except Exception as error:
        log.warning("the bundled model could not be published: %s", error)


def say_where(settings: Settings, device: Device, gateway: Gateway, port: int) -> None:
    """The start line: address (with the port the system chose, if it did), device, what to type next."""
    settings = replace(settings, address=(settings.host, port))
    names = [model.name.model for model in gateway.store.list()]
    following = f"gemmule run {'bud' if 'bud' in names else names[0]}" if names else "gemmule pull <model>"
    place = f" and {settings.socket}" if settings.socket else ""
    place += f", for frames on {settings.frames}" if settings.frames else ""
    say(
        f"gemmule {__version__} listens on {settings.base_url}{place}, runs models on {device.name}; "
        f"next: {following}"
    )
    if device.warning:
        say(f"gemmule: warning: {device.warning}")


def say(line: str) -> None:
    """A line for the person who started the server."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _is_news(record: logging.LogRecord) -> bool:
    """A stream broken off on purpose is reported by the guard, once, not by uvicorn again."""
    return "without completing response" not in record.getMessage()


if __name__ == "__main__":
    sys.exit(main())

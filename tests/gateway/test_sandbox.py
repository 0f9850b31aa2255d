"""Real sandbox workers: what they compute, what they survive, how they are replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from gateway.errors import SandboxFailure
from gateway.sandbox import Sandbox, SandboxError
from gateway.sandbox_calls import (
    CheckTemplate,
    Describe,
    PrepareChat,
    Prepared,
    Tokenize,
    Turn,
)
from gateway.sandbox_worker import CALLS, Request, answer
from modelfiles.files import ModelFile
from modelfiles.messages import Message
from modelfiles.templates.source import TemplateSource
from tests.gateway.scripted_model import scripted_model


def chat_call(folder: Path, template: str | None = None, text: str = "Hi") -> PrepareChat:
    model = scripted_model(folder)
    source = TemplateSource("jinja", template) if template else model.template
    return PrepareChat(model.files, model.weights_digest, source, (Turn.of(Message.of("user", text)),))


def test_calls_travel_and_come_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        sandbox = Sandbox(2)
        try:
            calls = [chat_call(tmp_path, text=f"number {n}") for n in range(12)]
            found = await asyncio.gather(*(sandbox.call(call, Prepared) for call in calls))
            assert [f"number {n}" in prepared.text for n, prepared in enumerate(found)] == [True] * 12
            with pytest.raises(SandboxError, match="template"):
                await sandbox.call(CheckTemplate(TemplateSource("jinja", "{% if %}")), bool)
            assert await sandbox.call(CheckTemplate(TemplateSource("jinja", "{{ messages }}")), bool)
        finally:
            await sandbox.close()

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_call_that_takes_too_long_is_stopped_and_the_next_one_works(tmp_path: Path) -> None:
    async def scenario() -> None:
        sandbox = Sandbox(1)
        try:
            await sandbox.call(chat_call(tmp_path), Prepared)
            long = Tokenize(*_files(tmp_path), text="x" * 40_000_000)
            started = time.monotonic()
            with pytest.raises(SandboxFailure, match=r"longer than 0\.2 seconds"):
                await sandbox.call(long, list[int], deadline=0.2)
            assert time.monotonic() - started < 3
            assert (await sandbox.call(chat_call(tmp_path), Prepared)).token_ids
        finally:
            await sandbox.close()

    asyncio.run(scenario())


def test_signals_to_the_whole_group_leave_a_worker_to_its_gateway(tmp_path: Path) -> None:
    async def scenario() -> None:
        sandbox = Sandbox(1)
        try:
            await sandbox.call(chat_call(tmp_path), Prepared)
            before = set(sandbox._workers)
            for worker in before:
                os.kill(worker._process.pid, signal.SIGTERM)
                os.kill(worker._process.pid, signal.SIGINT)
            assert (await sandbox.call(chat_call(tmp_path), Prepared)).token_ids
            assert set(sandbox._workers) == before
        finally:
            await sandbox.close()

    asyncio.run(scenario())


def test_a_worker_that_dies_is_one_clear_fault_and_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        sandbox = Sandbox(1)
        try:
            await sandbox.call(chat_call(tmp_path), Prepared)
            (worker,) = sandbox._workers
            os.kill(worker._process.pid, 9)
            results = [await _outcome(sandbox, tmp_path) for _ in range(3)]
            assert results[-1] == "ok"
            assert set(results) <= {"ok", "SandboxFailure"}
        finally:
            await sandbox.close()

    async def _outcome(sandbox: Sandbox, folder: Path) -> str:
        try:
            await sandbox.call(chat_call(folder), Prepared)
        except SandboxFailure:
            return "SandboxFailure"
        return "ok"

    asyncio.run(scenario())


def test_a_caller_that_goes_away_leaves_the_worker_usable(tmp_path: Path) -> None:
    async def scenario() -> None:
        sandbox = Sandbox(1)
        try:
            await sandbox.call(chat_call(tmp_path), Prepared)
            before = set(sandbox._workers)
            task = asyncio.create_task(sandbox.call(chat_call(tmp_path, text="y" * 200_000), Prepared))
            await asyncio.sleep(0.005)
            task.cancel()
            assert "again" in (await sandbox.call(chat_call(tmp_path, text="again"), Prepared)).text
            assert set(sandbox._workers) == before
        finally:
            await sandbox.close()

    asyncio.run(scenario())


def test_a_worker_sees_no_environment_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMULE_API_KEYS", "canary-secret")

    async def scenario() -> None:
        sandbox = Sandbox(1)
        try:
            await sandbox.call(chat_call(tmp_path), Prepared)
            (worker,) = sandbox._workers
            assert b"canary-secret" not in environment_of(worker._process.pid)
        finally:
            await sandbox.close()

    asyncio.run(scenario())


def environment_of(pid: int) -> bytes:
    path = Path(f"/proc/{pid}/environ")
    if not path.exists():
        pytest.skip("no /proc here to look into the worker")
    return path.read_bytes()


def test_only_what_is_on_the_list_can_be_called() -> None:
    assert all(name == kind.__name__ for name, (kind, _) in CALLS.items())
    with pytest.raises(KeyError):
        answer(Request("system", msgspec.msgpack.encode({}), 1))


def test_errors_of_the_system_do_not_tell_where_files_lie(tmp_path: Path) -> None:
    gone = ModelFile("weights", "x.gguf", str(tmp_path / "secret-place"), f"sha256:{'0' * 64}", 1)
    reply = answer(Request("Describe", msgspec.msgpack.encode(Describe((gone,))), 5))
    assert (reply.error, reply.message) == ("FileNotFoundError", "No such file or directory")


def _files(folder: Path) -> tuple[tuple[object, ...], str]:
    model = scripted_model(folder)
    return model.files, model.weights_digest  # type: ignore[return-value]

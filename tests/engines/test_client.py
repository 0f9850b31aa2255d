"""A real runner process with the scripted engine, over the real socket: streams, cancelling, dying."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from functools import wraps
from typing import Any

import psutil
import pytest

from engines.base import (
    Classifier,
    Embedder,
    EncodeRequest,
    EngineOverloaded,
    GenerateRequest,
    Generator,
    InvalidRequest,
    Limits,
    LoadFailed,
    LoadProgress,
    LoadRequest,
    OutOfMemory,
    RunnerDied,
    StepOutput,
    TokenLogprob,
    Usage,
)
from engines.client import RunnerClient
from engines.process import runner_command
from engines.scripted import VOCABULARY, encode_text
from engines.streams import MAX_BUFFERED, merge_outputs

LOAD = LoadRequest(files=(), limits=Limits(slots=2, context=1000))


def run_async(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 20))

    return run


@asynccontextmanager
async def scripted(load: LoadRequest = LOAD, **kwargs: Any) -> AsyncIterator[RunnerClient]:
    client = await RunnerClient.start(load, command=runner_command("scripted"), **kwargs)
    try:
        yield client
    finally:
        await client.close()


def ask(script: object = None, **kwargs: Any) -> GenerateRequest:
    options: dict[str, Any] = {"request_id": 1, "prompt_token_ids": encode_text("hi"), "max_tokens": 10**6}
    return GenerateRequest(**{**options, **kwargs}, script=None if script is None else json.dumps(script))


async def collect(client: RunnerClient, request: GenerateRequest) -> StepOutput:
    async with aclosing(await client.generate(request)) as outputs:
        return merge_outputs([output async for output in outputs])


async def until_idle(client: RunnerClient) -> None:
    while (await client.status()).running:
        pass


def text_of(output: StepOutput) -> str:
    return b"".join(VOCABULARY.token_bytes[token] for token in output.token_ids).decode()


ENDLESS = {"steps": [{"text": "x", "delay_ms": 1}], "repeat": 100_000}


@run_async
async def test_the_client_has_the_three_capabilities() -> None:
    async with scripted() as client:
        assert isinstance(client, Generator)
        assert isinstance(client, Embedder)
        assert isinstance(client, Classifier)
        assert client.limits == LOAD.limits
        assert client.ready.capabilities == ("generate", "embed", "classify")


@run_async
async def test_without_a_script_the_prompt_comes_back() -> None:
    async with scripted() as client:
        whole = await collect(client, ask(prompt_token_ids=(1, *encode_text("grüß dich"))))
        assert text_of(whole) == "grüß dich"
        assert whole.finish_reason == "stop"
        assert whole.usage is not None
        assert (whole.usage.prompt, whole.usage.generated) == (12, 11)


@run_async
async def test_requests_with_one_id_do_not_mix() -> None:
    async with scripted() as client:
        texts = [f"number {i}" for i in range(20)]
        wholes = await asyncio.gather(
            *(collect(client, ask(prompt_token_ids=encode_text(text), request_id=7)) for text in texts)
        )
        assert [text_of(whole) for whole in wholes] == texts
        assert {whole.request_id for whole in wholes} == {7}


@run_async
async def test_tokens_logprobs_and_the_end_are_as_dictated() -> None:
    steps = [
        {"text": "a", "logprobs": [{"logprob": -0.5, "top": [[100, -0.5], [101, -1.0]]}]},
        {"tokens": [9]},
    ]
    async with scripted() as client:
        whole = await collect(client, ask({"steps": steps, "finish_reason": "length"}, top_logprobs=1))
        assert whole.logprobs == (
            TokenLogprob(100, -0.5, ((100, -0.5),)),
            TokenLogprob(9, 0.0, ((9, 0.0),)),
        )
        assert whole.finish_reason == "length"


@run_async
async def test_a_stop_token_and_max_tokens_end_a_sequence() -> None:
    async with scripted() as client:
        stopped = await collect(client, ask([{"text": "abc"}], stop_token_ids=encode_text("b")))
        assert (text_of(stopped), stopped.finish_reason) == ("a", "stop")
        going_on = await collect(
            client, ask([{"text": "abc"}], stop_token_ids=encode_text("b"), ignore_eos=True)
        )
        assert text_of(going_on) == "abc"
        cut = await collect(client, ask(ENDLESS, max_tokens=3))
        assert (text_of(cut), cut.finish_reason) == ("xxx", "length")


@run_async
async def test_refusals_raise_before_the_first_token() -> None:
    async with scripted() as client:
        with pytest.raises(InvalidRequest, match="1000 tokens, but the context is 1000"):
            await client.generate(ask(prompt_token_ids=(5,) * 1000))
        with pytest.raises(InvalidRequest, match=r"\$\[0\]\.tokens"):
            await client.generate(ask([{"tokens": "no"}]))
        assert text_of(await collect(client, ask())) == "hi"


@run_async
async def test_closing_the_iterator_frees_the_slot() -> None:
    async with scripted() as client:
        for _ in range(5):
            async with aclosing(await client.generate(ask(ENDLESS))) as tokens:
                await anext(tokens)
        assert text_of(await collect(client, ask())) == "hi"
        assert (await client.status()).running == 0


@run_async
async def test_dropping_the_iterator_frees_the_slot() -> None:
    async with scripted() as client:
        tokens = await client.generate(ask(ENDLESS))
        await anext(tokens)
        del tokens
        gc.collect()
        await asyncio.sleep(0.05)
        assert (await client.status()).running == 0


@run_async
async def test_a_caller_cancelled_while_waiting_frees_the_slot() -> None:
    async with scripted() as client:
        task = asyncio.create_task(collect(client, ask(ENDLESS)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert (await client.status()).running == 0


@run_async
async def test_one_slow_reader_neither_stalls_others_nor_heaps_up_outputs() -> None:
    async with scripted() as client:
        slow = await client.generate(ask({"steps": [{"text": "y"}], "repeat": 20_000}))
        fast = await collect(client, ask({"steps": [{"text": "z"}], "repeat": 20_000}))
        assert len(fast.token_ids) == 20_000
        await asyncio.sleep(0.05)
        first = await anext(slow)
        assert text_of(first).strip("y") == ""
        assert len(first.token_ids) == 20_000


@run_async
async def test_a_reader_that_never_reads_is_given_up() -> None:
    async with scripted() as client:
        step = {"text": "y" * 100}
        stalled = await client.generate(ask({"steps": [step], "repeat": 10_000_000}, max_tokens=10**9))
        await until_idle(client)
        first = await anext(stalled)
        assert len(first.token_ids) <= 2 * MAX_BUFFERED
        with pytest.raises(EngineOverloaded, match="behind"):
            await anext(stalled)


@run_async
async def test_a_failing_step_ends_its_own_stream_only() -> None:
    async with scripted() as client:
        other = await client.generate(ask(ENDLESS))
        broken = await collect(client, ask([{"text": "a"}, {"fail": "error"}]))
        assert (broken.finish_reason, broken.error) == ("error", "the script said so")
        short = await client.generate(ask([{"text": "a"}, {"fail": "out_of_memory"}]))
        assert text_of(await anext(short)) == "a"
        with pytest.raises(OutOfMemory):
            await anext(short)
        assert text_of(await anext(other)).startswith("x")
        await other.aclose()


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV"])
def test_a_dead_runner_is_noticed_within_a_second(how: str) -> None:
    @run_async
    async def check() -> None:
        async with scripted() as client:
            streams = [await client.generate(ask(ENDLESS)) for _ in range(2)]
            for stream in streams:
                await anext(stream)
            killed = time.monotonic()
            if how == "exit":
                waiting = asyncio.create_task(collect(client, ask([{"fail": "exit"}])))
                await streams.pop().aclose()
                with pytest.raises(RunnerDied):
                    await waiting
            else:
                os.kill(client.pid, getattr(signal, how))
            for stream in streams:
                with pytest.raises(RunnerDied, match="71" if how == "exit" else how):
                    while True:
                        await anext(stream)
            assert time.monotonic() - killed < 1
            await client.wait_closed()
            for call in (client.status(), client.embed([EncodeRequest(1, (5,))]), client.generate(ask())):
                with pytest.raises(RunnerDied):
                    await call

    check()


@run_async
async def test_signals_to_the_whole_group_leave_a_runner_to_its_gateway() -> None:
    async with scripted() as client:
        stream = await client.generate(ask(ENDLESS))
        await anext(stream)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(client.pid, number)
        await asyncio.sleep(0.1)
        await client.status()
        await anext(stream)
        await stream.aclose()
    assert not psutil.pid_exists(client.pid)


@run_async
async def test_a_hanging_runner_is_killed_by_the_watchdog() -> None:
    async with scripted(watchdog_seconds=0.2) as client:
        with pytest.raises(RunnerDied, match="SIGKILL"):
            await collect(client, ask([{"text": "a"}, {"fail": "hang"}]))


@run_async
async def test_a_slow_but_living_runner_is_left_alone() -> None:
    async with scripted(watchdog_seconds=0.1) as client:
        whole = await collect(client, ask([{"text": "a"}, {"text": "b", "delay_ms": 600}]))
        assert text_of(whole) == "ab"


@run_async
async def test_vectors_and_labels() -> None:
    async with scripted() as client:
        outputs = await client.embed(
            [EncodeRequest(i % 2, encode_text(text)) for i, text in enumerate("aba")]
        )
        assert [output.request_id for output in outputs] == [0, 1, 0]
        assert outputs[0].vector == outputs[2].vector != outputs[1].vector
        assert outputs[0].usage == Usage(prompt=1)
        with pytest.raises(InvalidRequest, match="context"):
            await client.embed([EncodeRequest(0, (5,)), EncodeRequest(1, (5,) * 2000)])
        assert await client.classify(bytes(3072)) == "airplane"
        with pytest.raises(InvalidRequest, match="3072"):
            await client.classify(b"short")


@run_async
async def test_loading_reports_progress() -> None:
    seen: list[LoadProgress] = []
    async with scripted(on_progress=seen.append):
        assert seen == [LoadProgress("reading", 1, 1)]


@run_async
async def test_a_runner_that_dies_while_loading_leaves_its_last_words() -> None:
    words = [sys.executable, "-c", "import sys; sys.exit('no such weights')"]
    with pytest.raises(LoadFailed, match=r"exited with code 1(.|\n)*no such weights"):
        await RunnerClient.start(LOAD, command=words)
    with pytest.raises(LoadFailed, match="could not be started"):
        await RunnerClient.start(LOAD, command=["/no/such/program"])


@run_async
async def test_a_runner_that_breaks_the_protocol_is_ended() -> None:
    code = (
        "import socket, sys; socket.socket(fileno=int(sys.argv[2])).sendall(b'\\xff' * 99); sys.stdin.read()"
    )
    with pytest.raises(LoadFailed):
        await RunnerClient.start(LOAD, command=[sys.executable, "-c", code])


@run_async
async def test_a_cancelled_start_leaves_no_process() -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await RunnerClient.start(LOAD, command=sleeper)


def test_kill_9_of_the_parent_leaves_no_runner() -> None:
    code = """
        import asyncio, sys
        from engines.base import Limits, LoadRequest
        from engines.client import RunnerClient
        from engines.process import runner_command

        async def main():
            load = LoadRequest(files=(), limits=Limits(1, 100))
            client = await RunnerClient.start(load, command=runner_command("scripted"))
            print(client.pid, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        runner = int(parent.stdout.readline())
        os.kill(runner, 0)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 2
    while is_running(runner):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """A zombie that nobody reaps yet (a container without init) is not running."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False

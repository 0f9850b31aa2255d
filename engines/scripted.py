"""An engine without a model: it emits exactly what a request's script dictates, or echoes the prompt.

For tests and benches of everything above the engine, on the same frames, process and loop as a real one.
Its vocabulary is bytes: token id = byte + 3, then a few control tokens. Knows no JAX; served by
`python -m engines.runner --engine scripted`.

A script is JSON: a list of steps, or `{"steps": [...], "repeat": n, "finish_reason": "stop" | "length"}`.
A step emits `tokens` (ids) or `text`, after `delay_ms`; `logprobs` is as long as its tokens, each a number or
`{"logprob": x, "top": [[id, x], ...]}`. A step `{"fail": "error" | "exit" | "hang" | "out_of_memory"}` breaks
there. Steps without a delay come as fast as the loop turns; `"unthrottled": true` puts all that is left into
one output.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Literal

import msgspec

from engines.base import (
    AdapterFiles,
    AdaptRequest,
    EncodeOutput,
    EncodeRequest,
    EngineError,
    EngineOverloaded,
    FinishReason,
    GenerateRequest,
    InvalidRequest,
    LabelScore,
    Limits,
    LoadProgress,
    LoadRequest,
    OutOfMemory,
    Ready,
    RunnerStatus,
    StepOutput,
    TokenLogprob,
    Usage,
)
from engines.serving import StepResult
from modelfiles.vocabulary import Vocabulary

PAD, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3
CONTROL_NAMES = (
    "<start_of_turn>",
    "<end_of_turn>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<image>",
)
FIRST_CONTROL = FIRST_BYTE + 256
CONTROL_IDS = {name: FIRST_CONTROL + i for i, name in enumerate(CONTROL_NAMES)}
MAX_WAITING = 256
VECTOR_DIMENSIONS = 16
LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_BYTES = 3072

VOCABULARY = Vocabulary(
    token_bytes=(
        b"<pad>",
        b"<bos>",
        b"<eos>",
        *(bytes([byte]) for byte in range(256)),
        *(name.encode() for name in CONTROL_NAMES),
    ),
    control_token_ids=frozenset({PAD, BOS, EOS, *CONTROL_IDS.values()}),
    end_token_ids=(EOS, CONTROL_IDS["<end_of_turn>"]),
    bos_token_id=BOS,
    add_bos=True,
    names={"<pad>": PAD, "<bos>": BOS, "<eos>": EOS, **CONTROL_IDS},
)


def encode_text(text: str) -> tuple[int, ...]:
    """The byte tokens of a text; names of control tokens in it stay plain text."""
    return tuple(byte + FIRST_BYTE for byte in text.encode())


class ScriptLogprob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class ScriptStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[float | ScriptLogprob, ...] = ()
    delay_ms: float = 0
    fail: Literal["error", "exit", "hang", "out_of_memory"] | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.tokens + encode_text(self.text)


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    steps: tuple[ScriptStep, ...] = ()
    repeat: int = 1
    finish_reason: Literal["stop", "length"] = "stop"
    unthrottled: bool = False

    def __iter__(self) -> Iterator[ScriptStep]:
        return chain.from_iterable(repeat(self.steps, self.repeat))


def parse_script(text: str) -> Script:
    """Raises `InvalidRequest` naming the path inside the script that is wrong."""
    try:
        if text.lstrip().startswith("["):
            return Script(msgspec.json.decode(text, type=tuple[ScriptStep, ...]))
        return msgspec.json.decode(text, type=Script)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the script is not readable: {error}") from error


def echo_script(prompt: tuple[int, ...]) -> Script:
    """One step per byte token of the prompt; control tokens are left out."""
    return Script(
        tuple(ScriptStep(tokens=(token,)) for token in prompt if FIRST_BYTE <= token < FIRST_CONTROL)
    )


class _Sequence:
    """One running request: where its script is, when it goes on, what it has produced."""

    def __init__(self, request: GenerateRequest, script: Script, now: float) -> None:
        self.request = request
        self.script = script
        self.steps = iter(script)
        self.started = now
        self.first_token: float | None = None
        self.generated = 0
        self.next = next(self.steps, None)
        self.due = now + self.delay

    @property
    def delay(self) -> float:
        return self.next.delay_ms / 1000 if self.next is not None else 0.0

    def advance(self) -> ScriptStep | None:
        step, self.next = self.next, next(self.steps, None)
        self.due += self.delay
        return step

    def gather(self) -> ScriptStep | None:
        """The next step, or all that is left of an unthrottled script up to `max_tokens`, as one."""
        step = self.advance()
        if not self.script.unthrottled or step is None:
            return step
        tokens = list(step.token_ids)
        logprobs = list(step.logprobs)
        while self.next is not None and not self.next.fail and len(tokens) < self.request.max_tokens:
            following = self.advance()
            assert following is not None
            tokens += following.token_ids
            logprobs += following.logprobs
        return ScriptStep(tokens=tuple(tokens), logprobs=tuple(logprobs), fail=step.fail)

    def usage(self, now: float) -> Usage:
        first = self.first_token if self.first_token is not None else now
        return Usage(
            prompt=len(self.request.prompt_token_ids),
            generated=self.generated,
            prefill_ns=int((first - self.started) * 1e9),
            decode_ns=int((now - first) * 1e9),
        )


class ScriptedEngine:
    """Runs as many scripts at once as it has slots; the others wait in order."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limits = Limits(slots=1, context=1)
        self._running: dict[int, _Sequence] = {}
        self._waiting: deque[_Sequence] = deque()
        self._cancelled: list[_Sequence] = []
        self._embeddings: list[EncodeRequest] = []
        self._adapters: dict[int, str] = {}
        self._generated = 0
        self._prompted = 0

    def load(self, request: LoadRequest, progress: Callable[[LoadProgress], None]) -> Ready:
        started = self._clock()
        self._limits = request.limits
        progress(LoadProgress("reading", 1, 1))
        return Ready(
            limits=self._limits,
            capabilities=("generate", "embed", "classify"),
            memory_bytes=0,
            device=request.device,
            load_ns=int((self._clock() - started) * 1e9),
            kernels="scripted",
        )

    def prepare(self, request: GenerateRequest) -> object:
        return None  # a script obeys no grammar

    def read_adapter(self, adapter: AdapterFiles) -> object:
        return None  # it changes nothing, but requests may only name one that lies in a slot

    def adapt(self, request: AdaptRequest, prepared: object) -> None:
        self._adapters[request.slot] = request.adapter.name

    def submit(self, request: GenerateRequest, prepared: object | None) -> None:
        self._check_length(request.prompt_token_ids)
        if request.adapter is not None and request.adapter not in self._adapters.values():
            raise InvalidRequest(f"no adapter {request.adapter} is loaded here")
        script = (
            echo_script(request.prompt_token_ids) if request.script is None else parse_script(request.script)
        )
        if len(self._waiting) >= MAX_WAITING:
            raise EngineOverloaded(f"{MAX_WAITING} requests wait already; try again")
        self._prompted += len(request.prompt_token_ids)
        self._waiting.append(_Sequence(request, script, self._clock()))
        self._fill_slots()

    def submit_embedding(self, request: EncodeRequest) -> None:
        self._check_length(request.prompt_token_ids)
        self._embeddings.append(request)

    def score(self, image: bytes) -> list[LabelScore]:
        if len(image) != IMAGE_BYTES:
            raise InvalidRequest(f"an image is {IMAGE_BYTES} bytes (32 x 32 RGB), not {len(image)}")
        chosen = LABELS[sum(image) % len(LABELS)]
        return [(chosen, 1.0), *((label, 0.0) for label in LABELS if label != chosen)]

    def cancel(self, request_id: int) -> None:
        self._embeddings = [request for request in self._embeddings if request.request_id != request_id]
        for sequence in [*self._running.values(), *self._waiting]:
            if sequence.request.request_id == request_id:
                self._cancelled.append(sequence)
        self._running.pop(request_id, None)
        self._waiting = deque(each for each in self._waiting if each.request.request_id != request_id)
        self._fill_slots()

    def status(self) -> RunnerStatus:
        held = sum(len(each.request.prompt_token_ids) + each.generated for each in self._running.values())
        return RunnerStatus(
            running=len(self._running),
            waiting=len(self._waiting),
            tokens_in_cache=held,
            tokens_cache_size=self._limits.slots * self._limits.context,
            generated_total=self._generated,
            prompt_total=self._prompted,
            cached_total=0,
            compiled_programs=0,
        )

    def wait_seconds(self) -> float | None:
        if self._embeddings or self._cancelled:
            return 0
        if not self._running:
            return None
        return max(0.0, min(sequence.due for sequence in self._running.values()) - self._clock())

    def step(self) -> StepResult:
        now = self._clock()
        outputs = [self._finish(each, "cancelled", now) for each in self._cancelled]
        self._cancelled.clear()
        failures: list[tuple[int, EngineError]] = []
        for sequence in [each for each in self._running.values() if each.due <= now]:
            try:
                outputs.append(self._advance(sequence, now))
            except EngineError as error:
                del self._running[sequence.request.request_id]
                failures.append((sequence.request.request_id, error))
        embedded = [embed_tokens(request) for request in self._embeddings]
        self._embeddings.clear()
        self._fill_slots()
        return StepResult(outputs, embedded, failures)

    def _fill_slots(self) -> None:
        while self._waiting and len(self._running) < self._limits.slots:
            sequence = self._waiting.popleft()
            sequence.due = self._clock() + sequence.delay
            self._running[sequence.request.request_id] = sequence

    def _check_length(self, prompt: tuple[int, ...]) -> None:
        if len(prompt) >= self._limits.context:
            raise InvalidRequest(
                f"prompt has {len(prompt)} tokens, but the context is {self._limits.context}; "
                "raise num_ctx or shorten the prompt"
            )

    def _advance(self, sequence: _Sequence, now: float) -> StepOutput:
        step = sequence.gather()
        if step is None:
            return self._finish(sequence, sequence.script.finish_reason, now)
        if step.fail is not None:
            return self._break(sequence, step.fail, now)
        tokens, reason = _cut(sequence, step.token_ids)
        if tokens and sequence.first_token is None:
            sequence.first_token = now
        sequence.generated += len(tokens)
        self._generated += len(tokens)
        output = StepOutput(sequence.request.request_id, tokens, _logprobs(sequence.request, step, tokens))
        if reason is None and sequence.next is None:
            reason = sequence.script.finish_reason
        return output if reason is None else self._finish(sequence, reason, now, output)

    def _finish(
        self, sequence: _Sequence, reason: FinishReason, now: float, output: StepOutput | None = None
    ) -> StepOutput:
        request_id = sequence.request.request_id
        self._running.pop(request_id, None)
        output = output or StepOutput(request_id)
        return StepOutput(
            request_id,
            output.token_ids,
            output.logprobs,
            finish_reason=reason,
            usage=sequence.usage(now),
            error="the script said so" if reason == "error" else None,
        )

    def _break(self, sequence: _Sequence, kind: str, now: float) -> StepOutput:
        if kind == "exit":
            os._exit(71)
        while kind == "hang":
            time.sleep(3600)
        if kind == "out_of_memory":
            raise OutOfMemory("the script said so")
        return self._finish(sequence, "error", now)


def _cut(sequence: _Sequence, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], FinishReason | None]:
    """The tokens up to a stop token or `max_tokens`, and why they end there."""
    request = sequence.request
    room = request.max_tokens - sequence.generated
    ends = frozenset() if request.ignore_eos else frozenset(request.stop_token_ids)
    for i, token in enumerate(tokens[:room]):
        if token in ends:
            return tokens[:i], "stop"
    return tokens[:room], "length" if len(tokens) >= room else None


def _logprobs(
    request: GenerateRequest, step: ScriptStep, tokens: tuple[int, ...]
) -> tuple[TokenLogprob, ...]:
    """What the script gave; where it gave nothing, the token was certain."""
    if request.top_logprobs < 0:
        return ()
    given = dict(enumerate(step.logprobs))
    return tuple(_logprob(token, given.get(i, 0.0), request.top_logprobs) for i, token in enumerate(tokens))


def _logprob(token: int, given: float | ScriptLogprob, count: int) -> TokenLogprob:
    entry = given if isinstance(given, ScriptLogprob) else ScriptLogprob(given, ((token, given),))
    return TokenLogprob(token, entry.logprob, entry.top[:count])


def embed_tokens(request: EncodeRequest) -> EncodeOutput:
    """A unit vector that depends on the tokens alone: equal inputs, equal vectors."""
    packed = struct.pack(f"<{len(request.prompt_token_ids)}q", *request.prompt_token_ids)
    digest = hashlib.shake_128(packed).digest(VECTOR_DIMENSIONS)
    values = [byte - 127.5 for byte in digest]
    norm = math.sqrt(sum(value * value for value in values))
    vector = struct.pack(f"<{VECTOR_DIMENSIONS}f", *(value / norm for value in values))
    return EncodeOutput(request.request_id, vector, Usage(prompt=len(request.prompt_token_ids)))

"""The types every engine and its clients share, and the capabilities a runner may announce.

Frozen dataclasses, encoded by msgspec straight onto the frames of `engines.protocol`. No text is here but
error messages: prompts and answers are token ids.

    EngineError
    |- InvalidRequest      the request can never run here            (a client's fault)
    |- EngineOverloaded    no room now, try again                    (retry)
    |- OutOfMemory         the device has no room for this request or these weights
    |- LoadFailed          the weights cannot be served              (permanent)
    |- RunnerDied          the process behind the connection is gone
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from modelfiles.files import ModelFile

FinishReason = Literal["stop", "length", "cancelled", "error"]
Capability = Literal["generate", "embed", "classify"]
LabelScore = tuple[str, float]
"""A label and its probability."""

GrammarKind = Literal["json", "json_schema", "regex", "lark", "choice"]


class EngineError(Exception):
    """Anything an engine reports; `code` is the stable name sent in ERROR frames."""

    code = "engine_error"


class InvalidRequest(EngineError):
    code = "invalid_request"


class EngineOverloaded(EngineError):
    code = "overloaded"


class OutOfMemory(EngineError):
    code = "out_of_memory"


class LoadFailed(EngineError):
    code = "load_failed"


class RunnerDied(EngineError):
    code = "runner_died"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. `temperature` 0 is greedy. Neutral values switch a filter off.

    Order of filters: penalties and bias, temperature, top-k, typical-p, top-p, min-p (of llama.cpp).
    `seed` None lets the runner choose one.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the output must match: a JSON Schema, regex, Lark grammar, or a JSON list of choices in `source`.

    The mask is off until one of `after_token_ids` was generated, when any are given (thinking parts).
    """

    kind: GrammarKind
    source: str
    after_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Attachment:
    """Media that stands for prompt tokens [offset, offset + length)."""

    offset: int
    length: int
    digest: str
    data: bytes


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One sequence to continue. `top_logprobs` -1 asks for none, 0 for the chosen token's only.

    `adapter` names a LoRA adapter that lies in a slot; `cache_salt` keeps the prefix caches of owners apart.
    `script` is read by the scripted engine alone: what to emit, when to wait, how to fail.
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    sampling: SamplingParams = field(default_factory=SamplingParams)
    grammar: Grammar | None = None
    top_logprobs: int = -1
    prompt_logprobs: bool = False
    adapter: str | None = None
    attachments: tuple[Attachment, ...] = ()
    cache_salt: str = ""
    priority: int = 0
    script: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of the chosen token and of the likeliest ones, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts are tokens, durations nanoseconds. `cached` prompt tokens were not computed again."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0


@dataclass(frozen=True, slots=True)
class StepOutput:
    """New tokens of one sequence: 0..m of them. `finish_reason` and `usage` come with the last one only.

    `error` explains `finish_reason` "error". `logprobs` is empty or as long as `token_ids`. A stop token
    that ended the sequence is not among `token_ids`.
    """

    request_id: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """Asks for one embedding vector of a token sequence."""

    request_id: int
    prompt_token_ids: tuple[int, ...]
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class EncodeOutput:
    """`vector` is float32, L2-normalised, as little-endian bytes."""

    request_id: int
    vector: bytes
    usage: Usage


@dataclass(frozen=True, slots=True)
class Limits:
    """What a loaded runner can hold: sequences at once, tokens per sequence."""

    slots: int
    context: int


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A LoRA adapter offered to a runner under `name` (its digest)."""

    name: str
    files: tuple[ModelFile, ...]


@dataclass(frozen=True, slots=True)
class AdapterRoom:
    """Room beside a base for `slots` LoRA adapters of at most `rank`, on these `parts` of every layer."""

    slots: int
    rank: int
    parts: tuple[str, ...]

    def holds(self, other: AdapterRoom) -> bool:
        """Whether what fits a slot of `other` fits a slot of this."""
        return self.rank >= other.rank and set(self.parts) >= set(other.parts)

    def joined(self, other: AdapterRoom) -> AdapterRoom:
        """Room for what fits either."""
        parts = tuple(sorted({*self.parts, *other.parts}))
        return AdapterRoom(max(self.slots, other.slots), max(self.rank, other.rank), parts)


@dataclass(frozen=True, slots=True)
class AdaptRequest:
    """Puts an adapter into a slot, counted from 1, in place of what was there; answered by ACCEPTED."""

    request_id: int
    slot: int
    adapter: AdapterFiles


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Everything a runner is told before it serves. `device` is `cpu` or `gpu`; `memory_bytes` its budget.

    `adapter_room` is kept free for adapters that come later; None: there will be none.
    """

    files: tuple[ModelFile, ...]
    limits: Limits
    device: Literal["cpu", "gpu"] = "cpu"
    device_index: int = 0
    memory_bytes: int = 0
    threads: int = 0
    adapter_room: AdapterRoom | None = None
    compile_cache: str | None = None
    kv_type: Literal["bf16", "f32", "int8"] | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A runner's answer to LOAD."""

    limits: Limits
    capabilities: tuple[Capability, ...]
    memory_bytes: int
    device: str
    load_ns: int
    kernels: str = ""
    """Which matrix kernels serve: `native-avx512vnni`, `native-avx2`, `xla`, ..."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """What the runner is doing before Ready: `stage` is `reading`, `compiling` or `warming`."""

    stage: str
    completed: int
    total: int


@dataclass(frozen=True, slots=True)
class RunnerStatus:
    """A snapshot for metrics and `ps`."""

    running: int
    waiting: int
    tokens_in_cache: int
    tokens_cache_size: int
    generated_total: int
    prompt_total: int
    cached_total: int
    compiled_programs: int


@runtime_checkable
class Generator(Protocol):
    """Continues sequences. Closing the iterator cancels and frees the slot.

    `generate` returns once the runner has accepted the request; it raises an `EngineError` if it did not.
    The iterator ends after the output that carries `finish_reason`; it raises `RunnerDied` if the process
    goes away.
    """

    @property
    def limits(self) -> Limits: ...

    async def generate(self, request: GenerateRequest) -> AsyncIterator[StepOutput]: ...


@runtime_checkable
class Embedder(Protocol):
    """Turns token sequences into vectors."""

    async def embed(self, requests: Sequence[EncodeRequest]) -> Sequence[EncodeOutput]: ...


@runtime_checkable
class Classifier(Protocol):
    """Names what an RGB image shows: planes R, G, B of bytes, row-major (32 x 32: 3072 bytes)."""

    async def classify(self, image: bytes) -> str: ...

    async def score(self, image: bytes) -> list[LabelScore]: ...

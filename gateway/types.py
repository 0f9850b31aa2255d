"""The canonical request and the closed union of events: what lies between the dialects and the engine.

Every dialect parses into these and encodes from these; nothing below `gateway/openai`, `gateway/ollama`
and `gateway/anthropic` knows which dialect it was. Streaming or not is the edge's business: a whole reply
is a fold over the same events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from engines.base import Grammar, LabelScore, SamplingParams, Usage
from modelfiles.messages import Message, ToolCall, ToolSpec


@dataclass(frozen=True, slots=True)
class SamplingOverrides:
    """What the caller said about sampling; None means "as the model's parameters say, else the default"."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Per-request settings. `keep_alive` is in seconds, negative for ever; `logprobs` -1 none, else top-n.

    `num_predict` None takes the model's parameter, else until the end of the context.
    """

    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    num_predict: int | None = None
    stop: tuple[str, ...] | None = None
    n: int = 1
    logprobs: int = -1
    num_ctx: int | None = None
    keep_alive: float | None = None
    truncate: bool = False
    shift: bool = False
    ignore_eos: bool = False
    cache_salt: str = ""
    script: str | None = None


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`auto`, `none`, `required`, or `named` with one or more function `names` (`allowed_tools`)."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to continue. `think` None means the model's default; a string is an effort level.

    `model` is the name as the caller wrote it; replies echo it.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    parallel_tool_calls: bool = True
    format: Grammar | None = None
    think: bool | str | None = None
    options: GenerationOptions = field(default_factory=GenerationOptions)
    template: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Text to continue: `prompt` is a string or token ids; `raw` skips the template (always for OpenAI).

    Ollama's generate uses `system`, `template`, `context` and `suffix`; with `raw` false the prompt is one
    user turn rendered through the model's template.
    """

    model: str
    prompt: str | tuple[int, ...]
    raw: bool = True
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: tuple[int, ...] = ()
    format: Grammar | None = None
    think: bool | str | None = None
    echo: bool = False
    options: GenerationOptions = field(default_factory=GenerationOptions)


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts to embed. `truncate` cuts inputs longer than the context instead of refusing them."""

    model: str
    inputs: tuple[str, ...]
    dimensions: int | None = None
    truncate: bool = False
    keep_alive: float | None = None


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """Images to name: files of an image format, or raw planes of the model's own size."""

    model: str
    images: tuple[bytes, ...]
    keep_alive: float | None = None


@dataclass(frozen=True, slots=True)
class Classified:
    """For each image every label with its probability, likeliest first; `labels` in the model's own order."""

    labels: tuple[str, ...]
    scores: tuple[list[LabelScore], ...]


@dataclass(frozen=True, slots=True)
class TokenText:
    """One generated token as text, with its log-probability when asked for.

    `data` is the token's own bytes, which need not be whole characters.
    """

    text: str
    data: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Visible text of choice `index`."""

    index: int
    text: str
    logprobs: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """Reasoning text of choice `index`."""

    index: int
    text: str
    logprobs: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """Part of tool call number `call_index` of a choice.

    The first delta of a call carries `id` and `name`; later ones carry only more `arguments` text.
    Calls never interleave.
    """

    index: int
    call_index: int
    id: str | None
    name: str | None
    arguments: str


StopCause = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class GenerationUsage:
    """Usage of one choice plus the time the request waited for its model, in nanoseconds."""

    engine: Usage
    load_ns: int = 0
    total_ns: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """Choice `index` is complete. `stop_string` is the caller's stop that matched, if one did."""

    index: int
    reason: StopCause
    usage: GenerationUsage
    stop_string: str | None = None
    context: tuple[int, ...] = ()
    """Prompt and generated token ids (Ollama's `context`)."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The stream cannot go on; always the last event. The edge reports it and breaks the connection."""

    error: Exception


Event = TextDelta | ThinkingDelta | ToolCallDelta | Finished | Failed


@dataclass(frozen=True, slots=True)
class Rendered:
    """The exact prompt a request became, for the render-only switches."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """Caller's settings merged over the model's parameters and the defaults."""

    sampling: SamplingParams
    num_predict: int
    stop: tuple[str, ...]


__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "EmbedRequest",
    "Event",
    "Failed",
    "Finished",
    "GenerationOptions",
    "GenerationUsage",
    "Rendered",
    "ResolvedOptions",
    "SamplingOverrides",
    "TextDelta",
    "ThinkingDelta",
    "TokenText",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
]

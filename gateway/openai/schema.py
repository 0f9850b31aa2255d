"""The request bodies of the OpenAI dialect: types and bounds, nothing else.

Null means unset everywhere. Fields we do not know are ignored, as every peer does; which known ones are
refused is `refusals`' business. `gateway/README.md` lists every field and a test walks that list.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_CHOICES = 128
MAX_STOPS = 64
MAX_TOOLS = 512
MAX_BIASES = 1024
MAX_BATCH = 2048

Temperature = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Limit = Annotated[int, Field(ge=-1, le=2**31 - 1)]
"""Tokens to generate: at least 1; -1, which many local programs send, is no limit."""

Stops = str | Annotated[list[str], Field(max_length=MAX_STOPS)]
Biases = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)]


class Body(BaseModel):
    """Exact JSON types: "1" is no number and 1 is no text."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=(), hide_input_in_errors=True)


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class FunctionCallBody(Body):
    name: str
    arguments: str = ""


class ToolCallBody(Body):
    id: str = ""
    type: str = "function"
    function: FunctionCallBody


class MessageBody(Body):
    """One turn; `content` is text, a list of parts or null, taken apart by `convert`."""

    role: str
    content: str | list[dict[str, Any]] | dict[str, Any] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCallBody], Field(max_length=MAX_TOOLS)] | None = None
    function_call: FunctionCallBody | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class FunctionBody(Body):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Body):
    type: str = "function"
    function: FunctionBody | None = None


class SchemaBody(Body):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class FormatBody(Body):
    type: str
    json_schema: SchemaBody | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ReasoningBody(Body):
    effort: str | None = None
    enabled: bool | None = None


class SamplingBody(Body):
    """What chat and legacy completions share, with the extensions of our peers."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    logit_bias: Biases | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Limit | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    keep_alive: int | float | str | None = None
    num_ctx: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    options: dict[str, Any] | None = None
    ignore_eos: bool | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    response_format: FormatBody | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(min_length=1, max_length=10_000)] | None = None
    guided_grammar: str | None = None
    structured_outputs: dict[str, Any] | None = None
    render_only: bool | None = Field(default=None, alias="_debug_render_only")
    script: str | None = None
    """What the scripted engine is to do; read only where the tests' engine serves the model."""


class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[MessageBody], Field(min_length=1)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionBody], Field(max_length=MAX_TOOLS)] | None = None
    function_call: str | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning: ReasoningBody | None = None
    think: bool | str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    prediction: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    service_tier: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


TokenIds = list[TokenId]


class CompletionBody(SamplingBody):
    """POST /v1/completions; `prompt` is text, texts, token ids or lists of those."""

    prompt: str | TokenIds | list[str] | list[TokenIds] | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: str | list[str] | TokenIds | list[TokenIds]
    encoding_format: str | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**20)] | None = None
    user: str | None = None
    keep_alive: int | float | str | None = None


class TokenizeBody(Body):
    """POST /tokenize: `content` (llama.cpp), `prompt` (vLLM) or `messages`."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    content: str | None = None
    prompt: str | None = None
    messages: list[MessageBody] | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    tokens: TokenIds

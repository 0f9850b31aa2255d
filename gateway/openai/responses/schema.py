"""The request body of the Responses API. Items and tools are taken apart by `convert`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from gateway.openai.schema import Body, Limit, Share, Temperature


class TextBody(Body):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ReasoningOptions(Body):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseBody(Body):
    """POST /v1/responses."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Limit | None = None
    max_tool_calls: int | None = None
    text: TextBody | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=512)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    include: list[str] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncation: str | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    background: bool | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    keep_alive: int | float | str | None = None
    num_ctx: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    script: str | None = None
    render_only: bool | None = Field(default=None, alias="_debug_render_only")

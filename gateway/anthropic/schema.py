"""The request bodies of the Anthropic dialect. Blocks are taken apart by `convert`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from gateway.openai.schema import Body, Share


class MessageBody(Body):
    role: str
    content: str | list[dict[str, Any]]


class CountBody(Body):
    """POST /v1/messages/count_tokens."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    messages: Annotated[list[MessageBody], Field(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=512)] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class MessagesBody(CountBody):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)]
    stop_sequences: Annotated[list[str], Field(max_length=64)] | None = None
    stream: bool | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    script: str | None = None
    render_only: bool | None = Field(default=None, alias="_debug_render_only")

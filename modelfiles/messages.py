"""The conversation as every dialect and template sees it: messages, parts, tools and tool calls.

Plain frozen values. Dialects build them, templates render them, output parsers produce `ToolCall`s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """A run of text."""

    text: str


@dataclass(frozen=True, slots=True)
class MediaPart:
    """An image or a sound, already fetched and decoded from base64; refused by models without that sense."""

    kind: Literal["image", "audio"]
    mime_type: str
    data: bytes


Part = TextPart | MediaPart


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A function the model may call; `parameters` is a JSON Schema object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model made; `arguments` is the JSON text exactly as generated or received."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `thinking` holds the reasoning of an assistant turn; `name` the function of a tool turn."""

    role: Role
    parts: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    thinking: str | None = None

    @property
    def text(self) -> str:
        """All text parts joined without a separator."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @staticmethod
    def of(role: Role, text: str) -> Message:
        """The common case: a turn with one text part (none when `text` is empty)."""
        return Message(role, (TextPart(text),) if text else ())

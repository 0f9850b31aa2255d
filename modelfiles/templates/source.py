"""The values that cross into the process that renders: a template's source and a conversation to render.

Plain frozen data, encodable as MessagePack. Knows no template language. Used by everything in this package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from modelfiles.messages import Message, ToolSpec


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """A chat template: Jinja as Hugging Face uses it, or Go's text/template as Ollama does."""

    kind: Literal["jinja", "go"]
    text: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Everything a rendering depends on but the date.

    `think` None leaves the choice to the template; a string is an effort level. `control_strings` are kept
    out of the messages' and tools' text. `continue_final` leaves the last assistant turn open.
    `kwargs` are further template variables (`chat_template_kwargs`); they cannot replace ours.
    """

    template: TemplateSource
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    think: bool | str | None = None
    bos_token: str = ""
    eos_token: str = ""
    control_strings: tuple[str, ...] = ()
    continue_final: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)

"""What a sandbox worker can be asked: one frozen dataclass for each call, and what comes back as values.

Nothing here does anything; `sandbox_worker` has the function behind each call. Imported by whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from engines.base import AdapterRoom, Grammar
from modelfiles.description import ModelDescription
from modelfiles.files import ModelFile
from modelfiles.messages import Message, Role, TextPart, ToolCall, ToolSpec
from modelfiles.templates.source import TemplateSource


@dataclass(frozen=True, slots=True)
class Turn:
    """A `Message` that holds text only, as it travels."""

    role: Role
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    thinking: str | None = None

    @classmethod
    def of(cls, message: Message) -> Turn:
        """The text of `message`; the caller has refused media already."""
        return cls(
            message.role,
            message.text,
            message.tool_calls,
            message.tool_call_id,
            message.name,
            message.thinking,
        )

    def message(self) -> Message:
        parts = (TextPart(self.text),) if self.text else ()
        return Message(self.role, parts, self.tool_calls, self.tool_call_id, self.name, self.thinking)


@dataclass(frozen=True, slots=True)
class Describe:
    """What the weight files say about themselves -> `ModelDescription`."""

    files: tuple[ModelFile, ...]


@dataclass(frozen=True, slots=True)
class DecodeImage:
    """An image file, scaled to `side` x `side` -> its planes of red, green and blue as `bytes`."""

    data: bytes
    side: int


@dataclass(frozen=True, slots=True)
class ReadContents:
    """All metadata and tensors of the weight files -> `modelfiles.contents.Contents`."""

    files: tuple[ModelFile, ...]


@dataclass(frozen=True, slots=True)
class Examine:
    """As `Describe`, and refuses files that could not be served -> `ModelDescription`.

    Every tensor's name, shape and numbers, and a tokenizer: what is published can be loaded.
    """

    files: tuple[ModelFile, ...]


@dataclass(frozen=True, slots=True)
class Quantize:
    """Writes float weights in another type, as one GGUF, into the empty file at `path` -> True.

    `kind` is a name of `engines.decoder.quantize.MIXTURES`. No file may grow beyond `most` bytes.
    """

    files: tuple[ModelFile, ...]
    path: str
    kind: str
    most: int


@dataclass(frozen=True, slots=True)
class GetVocabulary:
    """The table of tokens -> `Vocabulary`. `digest` is the key under which the tokenizer is remembered."""

    files: tuple[ModelFile, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Inspect:
    """Which template, convention and abilities a model has -> `Inspected`.

    `renderer` and `parser` are the names a Modelfile gives instead of leaving the choice to us; names nobody
    knows, as models in others' stores may have, leave it to us after all.
    """

    description: ModelDescription
    template: str | None
    names: dict[str, int]
    renderer: str = ""
    parser: str = ""


@dataclass(frozen=True, slots=True)
class Inspected:
    template: TemplateSource
    capabilities: tuple[str, ...]
    convention: str


@dataclass(frozen=True, slots=True)
class Measure:
    """How to load files into `budget` bytes (`most` when that is too little) -> `Measured`.

    `slots` are the numbers of sequences to try, the most welcome first; `wanted` tokens of context are given
    if they fit, else as many as do. `room` is kept beside the weights, with fewer slots where it is large.
    """

    files: tuple[ModelFile, ...]
    slots: tuple[int, ...]
    wanted: int
    budget: int
    most: int
    kv_type: Literal["bf16", "f32", "int8"] = "bf16"
    device: Literal["cpu", "gpu"] = "cpu"
    room: AdapterRoom | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Sequences at once, tokens each, and the bytes both take with the weights and `room` for adapters.

    `adapter_bytes` is what one slot of that room takes.
    """

    slots: int
    context: int
    memory_bytes: int
    room: AdapterRoom | None = None
    adapter_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MeasureAdapter:
    """The least room with so many `slots` that holds an adapter of the base `files` -> `AdapterRoom`."""

    files: tuple[ModelFile, ...]
    adapter: tuple[ModelFile, ...]
    slots: int


@dataclass(frozen=True, slots=True)
class ExamineAdapter:
    """Whether an adapter fits the base `files` and holds only numbers -> True, or what is wrong."""

    files: tuple[ModelFile, ...]
    adapter: tuple[ModelFile, ...]


@dataclass(frozen=True, slots=True)
class PrepareChat:
    """Renders a conversation and encodes it -> `Prepared`."""

    files: tuple[ModelFile, ...]
    digest: str
    template: TemplateSource
    turns: tuple[Turn, ...]
    tools: tuple[ToolSpec, ...] = ()
    think: bool | str | None = None
    continue_final: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PrepareCompletion:
    """Renders one user turn, with a suffix the place between two texts, and encodes it -> `Prepared`."""

    files: tuple[ModelFile, ...]
    digest: str
    template: TemplateSource
    prompt: str
    system: str = ""
    suffix: str = ""
    think: bool | str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """The prompt as people read it and as the engine takes it."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Token ids of a text -> list of ids; `special` lets names of control tokens become their ids."""

    files: tuple[ModelFile, ...]
    digest: str
    text: str
    add_bos: bool = False
    special: bool = False


@dataclass(frozen=True, slots=True)
class Detokenize:
    """Text of token ids -> str."""

    files: tuple[ModelFile, ...]
    digest: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CheckTemplate:
    """Whether a template can be parsed -> True, or its error."""

    template: TemplateSource


@dataclass(frozen=True, slots=True)
class CheckGrammar:
    """Whether a grammar can be compiled -> True, or its error."""

    grammar: Grammar

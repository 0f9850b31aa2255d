"""The bodies of Ollama's native API, as clients send them: types are checked, meaning is not.

Strict like Go's decoder (no "3" for 3), lenient where Go is: null is absence, unknown keys are ignored,
`name` stands for `model`. Called by the routes only; `convert` turns a body into a canonical request.
"""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from gateway.duration import parse_duration
from gateway.errors import BadRequest
from gateway.strict_json import parse_object

MAX_MESSAGES = 100_000


def _keep_alive(value: Any) -> Any:
    """Seconds; None for absence (`null` and ""), as every client may send either."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'unsupported type {type(value).__name__}; write 300, "5m", 0 or -1')
    return float(value)


def _think(value: Any) -> Any:
    if value is None or value == "" or isinstance(value, bool):
        return None if value == "" else value
    if value in THINK_LEVELS:
        return value
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    raise ValueError(f'invalid think value: {shown} (must be "high", "medium", "low", "max", true, or false)')


THINK_LEVELS = ("high", "medium", "low", "max")
KeepAlive = Annotated[float | None, BeforeValidator(_keep_alive)]
Think = Annotated[bool | str | None, BeforeValidator(_think)]
Format = str | dict[str, Any] | None


class Body(BaseModel):
    """What all bodies share."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True, protected_namespaces=())


class NamedBody(Body):
    """A body that names a model under `model` or `name`; Ollama's own command fills either and leaves the
    other empty."""

    model: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        self.model = self.model or self.name
        return self


class GenerationBody(Body):
    """What generate and chat share."""

    model: str | None = None
    stream: bool | None = None
    format: Format = None
    keep_alive: KeepAlive = None
    options: dict[str, Any] | None = None
    think: Think = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    debug_render_only: bool | None = Field(default=None, validation_alias="_debug_render_only")
    script: str | None = None
    """What the scripted engine is to do; read only where the tests' engine serves the model."""


class GenerateBody(GenerationBody):
    """POST /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class FunctionBody(Body):
    index: int | None = None
    name: str = ""
    arguments: dict[str, Any] | str | None = None


class ToolCallBody(Body):
    id: str | None = None
    function: FunctionBody


class MessageBody(Body):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ToolFunctionBody(Body):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Body):
    type: str | None = None
    function: ToolFunctionBody


class ChatBody(GenerationBody):
    """POST /api/chat; `tool_choice` and `parallel_tool_calls` are ours."""

    messages: list[MessageBody] | None = Field(default=None, max_length=MAX_MESSAGES)
    tools: list[ToolBody] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class EmbedBody(Body):
    """POST /api/embed; `input` is a string or a list of strings, checked in `convert`."""

    model: str | None = None
    input: Any = None
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: KeepAlive = None
    options: dict[str, Any] | None = None


class EmbeddingsBody(Body):
    """POST /api/embeddings, the older form: one prompt, one vector."""

    model: str | None = None
    prompt: str | None = None
    keep_alive: KeepAlive = None
    options: dict[str, Any] | None = None


class ShowBody(NamedBody):
    """POST /api/show; `system` and `template` are shown as if the model had them."""

    system: str | None = None
    template: str | None = None
    verbose: bool | None = None
    options: dict[str, Any] | None = None


class CopyBody(Body):
    source: str | None = None
    destination: str | None = None


class DeleteBody(NamedBody):
    """DELETE /api/delete, with a body."""


class TransferBody(NamedBody):
    """POST /api/pull and /api/push; user name and password are accepted and ignored, as Ollama does."""

    insecure: bool | None = None
    stream: bool | None = None


class PullBody(TransferBody):
    """POST /api/pull; `dry_run` is ours: tell what it would cost and stop."""

    dry_run: bool | None = None


class CreateBody(NamedBody):
    """POST /api/create. `files` and `adapters` map a file name to the digest of an uploaded blob."""

    from_: str | None = Field(default=None, validation_alias="from")
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    template: str | None = None
    system: str | None = None
    license: str | list[str] | None = None
    parameters: dict[str, Any] | None = None
    messages: list[MessageBody] | None = None
    quantize: str | None = Field(default=None, validation_alias=AliasChoices("quantize", "quantization"))
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    modelfile: str | None = None
    stream: bool | None = None


B = TypeVar("B", bound=Body)


def read_body(kind: type[B], raw: bytes) -> B:
    """A checked body. Raises BadRequest with one line for the caller: what field, what is wrong."""
    value = parse_object(raw)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(step) for step in first["loc"] if not _is_type_name(step))
        raise BadRequest(_explain(place, first["type"], first["msg"]), param=place or None) from None


def _explain(place: str, kind: str, message: str) -> str:
    """pydantic's report as a sentence of ours."""
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
    else:
        message = message[:1].lower() + message[1:]
    if not place or message.startswith("invalid think value"):
        return message
    return f"{place}: {message}"


def _is_type_name(step: int | str) -> bool:
    """Union members add a step such as `dict[str,any]` to the place; users never wrote those."""
    return isinstance(step, str) and (step in {"str", "bool", "int", "float"} or "[" in step or "(" in step)

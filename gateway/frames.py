"""Frames for local programs: what each public frame asks of the service, and what it is answered with.

Bodies are msgpack, but for CLASSIFY, which is an image's bytes and is answered with its label; one request
may be answered with several frames. Holds leases like any dialect. Given to `engines.listener`.

    GENERATE  `LocalGenerate` -> GENERATE with a `LocalText` for each piece, the last with a finish reason
    EMBED     `LocalEmbed`    -> EMBEDDED with one float32 vector for each input, numbered from 0
    CLASSIFY  image           -> CLASSIFY with the label, by `GEMMULE_CLASSIFIER` or the only such model
    INFO      nil             -> INFO with a `LocalInfo`
    any fault                 -> ERROR with an `engines.protocol.ErrorReport`
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from engines.base import EncodeOutput, EngineError, InvalidRequest, Usage
from engines.protocol import Frame, FrameType, ProtocolError, encode_body
from gateway import __version__
from gateway.errors import BadRequest, NotFound, describe
from gateway.types import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbedRequest,
    Failed,
    Finished,
    GenerationOptions,
    SamplingOverrides,
    TextDelta,
    ThinkingDelta,
)
from modelfiles.messages import Message

if TYPE_CHECKING:
    from gateway.gateway import Gateway

Replies = AsyncGenerator[Frame, None]


class LocalMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class LocalGenerate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `prompt` (text, or token ids) to go on from as it is, or `messages` to answer by the template.

    What is absent is as the model's parameters say. `think` None is the model's default.
    """

    model: str
    prompt: str | tuple[int, ...] | None = None
    messages: tuple[LocalMessage, ...] = ()
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    think: bool | None = None


class LocalText(msgspec.Struct, frozen=True):
    """A piece of a reply. The last one has a reason, and the tokens the reply took."""

    text: str = ""
    thinking: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None


class LocalEmbed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    inputs: tuple[str, ...]


class LocalInfo(msgspec.Struct, frozen=True):
    """What answers here: the models of the store, and those in memory."""

    version: str
    models: tuple[str, ...]
    loaded: tuple[str, ...]


class Refused(EngineError):
    """A fault of the gateway as a frame tells it, under its own code."""

    def __init__(self, error: Exception) -> None:
        fault = describe(error)
        super().__init__(fault.message)
        self.code = fault.code or fault.kind


class FrameDialect:
    """Answers the public frames of one gateway; `classifier` is the model behind CLASSIFY, "" to find it."""

    def __init__(self, gateway: Gateway, classifier: str) -> None:
        self._gateway = gateway
        self._classifier = classifier
        self._answers: dict[FrameType, Callable[[bytes], Replies]] = {
            FrameType.GENERATE: self._generate,
            FrameType.EMBED: self._embed,
            FrameType.CLASSIFY: self._classify,
            FrameType.INFO: self._info,
        }

    async def answer(self, frame: Frame) -> Replies:
        """The frames that answer one; closing the generator cancels. Raises `EngineError`."""
        try:
            self._gateway.check_open()
            async with aclosing(self._answers[frame.type](frame.body)) as replies:
                async for reply in replies:
                    yield reply
        except EngineError:
            raise
        except Exception as error:
            raise Refused(error) from error

    async def _generate(self, body: bytes) -> Replies:
        asked = _decoded(body, LocalGenerate)
        service = self._gateway.service
        if asked.messages:
            events = await service.chat(_chat(asked))
        else:
            events = await service.complete(_completion(asked))
        async with aclosing(events) as running:  # type: ignore[type-var]
            async for event in running:
                match event:
                    case TextDelta():
                        yield _reply(FrameType.GENERATE, LocalText(event.text))
                    case ThinkingDelta():
                        yield _reply(FrameType.GENERATE, LocalText(thinking=event.text))
                    case Finished():
                        last = LocalText(finish_reason=event.reason, usage=event.usage.engine)
                        yield _reply(FrameType.GENERATE, last)
                    case Failed():
                        raise event.error

    async def _embed(self, body: bytes) -> Replies:
        asked = _decoded(body, LocalEmbed)
        found = await self._gateway.service.embed(EmbedRequest(asked.model, asked.inputs))
        outputs = [EncodeOutput(at, vector, Usage()) for at, vector in enumerate(found.vectors)]
        if outputs:
            outputs[-1] = EncodeOutput(outputs[-1].request_id, outputs[-1].vector, found.usage)
        yield Frame(FrameType.EMBEDDED, encode_body(FrameType.EMBEDDED, outputs))

    async def _classify(self, body: bytes) -> Replies:
        asked = ClassifyRequest(await self._find_classifier(), (body,))
        (scores,) = (await self._gateway.service.classify(asked)).scores
        yield Frame(FrameType.CLASSIFY, scores[0][0].encode())

    async def _find_classifier(self) -> str:
        """The model that names images: the one set, or the only one there is."""
        if self._classifier:
            return self._classifier
        models = await self._gateway.catalog.list()
        able = [model.name.display() for model in models if "classification" in model.config.capabilities]
        if not able:
            raise NotFound("no model here classifies images; make one with `gemmule train`")
        if len(able) > 1:
            raise BadRequest(f"{len(able)} models classify images; choose one with GEMMULE_CLASSIFIER")
        return able[0]

    async def _info(self, body: bytes) -> Replies:
        gateway = self._gateway
        models = tuple(model.name.display() for model in await gateway.catalog.list())
        loaded = tuple(row.name for row in gateway.manager.loaded())
        yield _reply(FrameType.INFO, LocalInfo(__version__, models, loaded))


def _chat(asked: LocalGenerate) -> ChatRequest:
    if asked.prompt is not None:
        raise InvalidRequest("give a prompt or messages, not both")
    messages = tuple(Message.of(message.role, message.content) for message in asked.messages)
    return ChatRequest(asked.model, messages, think=asked.think, options=_options(asked))


def _completion(asked: LocalGenerate) -> CompletionRequest:
    if asked.prompt is None:
        raise InvalidRequest("there is nothing to answer; give a prompt or messages")
    return CompletionRequest(asked.model, asked.prompt, options=_options(asked))


def _options(asked: LocalGenerate) -> GenerationOptions:
    sampling = SamplingOverrides(
        temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p, seed=asked.seed
    )
    return GenerationOptions(sampling, num_predict=asked.max_tokens, stop=asked.stop)


def _decoded(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(f"the body is no {kind.__name__}: {error}") from error


def _reply(kind: FrameType, value: msgspec.Struct) -> Frame:
    return Frame(kind, msgspec.msgpack.encode(value))

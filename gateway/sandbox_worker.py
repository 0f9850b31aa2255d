"""The worker's side of the sandbox: an allow-list of pure functions, their arguments and results as values.

Runs as `python -m gateway.sandbox_worker FD`, limits itself before the first call, and never sees an
environment, a network or a file it was not told to read. Everything heavy is imported when a call needs it.
"""

from __future__ import annotations

import signal
import socket
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from engines.base import AdapterRoom
from gateway.sandbox_calls import (
    CheckGrammar,
    CheckTemplate,
    DecodeImage,
    Describe,
    Detokenize,
    Examine,
    ExamineAdapter,
    GetVocabulary,
    Inspect,
    Inspected,
    Measure,
    MeasureAdapter,
    Measured,
    PrepareChat,
    PrepareCompletion,
    Prepared,
    Quantize,
    ReadContents,
    Tokenize,
)
from gateway.sandbox_limits import limit_file_size, limit_process, limit_processor_time
from modelfiles.description import ModelDescription
from modelfiles.files import ModelFile
from modelfiles.templates.source import ChatPrompt
from modelfiles.vocabulary import Vocabulary

if TYPE_CHECKING:
    from modelfiles.description import Contents
    from modelfiles.tokenizer import Tokenizer

HEADER = struct.Struct(">I")
MAX_FRAME = 256 * 2**20
TOKENIZERS_KEPT = 4
LEAST_CONTEXT = 2048
"""A context below this is worth giving up sequences for."""
ADAPTER_SHARE = 1 / 8
"""Of all memory for models, beyond which room for adapters has fewer slots."""


@dataclass(frozen=True, slots=True)
class Request:
    """`call` names a class below; `body` is its value; `seconds` the processor time it may take."""

    call: str
    body: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """A value, or the class name and text of the error the function raised."""

    value: bytes = b""
    error: str | None = None
    message: str = ""


class _Tokenizers:
    """The tokenizers used last, by weights digest: loading one costs up to a second, using it nothing."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Tokenizer] = OrderedDict()

    def get(self, files: tuple[ModelFile, ...], digest: str) -> Tokenizer:
        if digest not in self._kept:
            from modelfiles.tokenizer import load_tokenizer

            self._kept[digest] = load_tokenizer(files)
            while len(self._kept) > TOKENIZERS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(digest)
        return self._kept[digest]


_tokenizers = _Tokenizers()


def describe_files(call: Describe) -> ModelDescription:
    from modelfiles.describe import describe

    return describe(call.files)


def decode_image(call: DecodeImage) -> bytes:
    from modelfiles.images import image_planes

    return image_planes(call.data, call.side)


def contents_of_files(call: ReadContents) -> Contents:
    from modelfiles.contents import read_contents

    return read_contents(call.files)


def examine_files(call: Examine) -> ModelDescription:
    from engines.classifier.storage import load as load_classifier
    from engines.decoder.weights import check_files, check_weights
    from modelfiles.describe import describe
    from modelfiles.description import IMAGE_CLASSIFIER
    from modelfiles.tokenizer import load_vocabulary

    description = describe(call.files)
    if description.architecture == IMAGE_CLASSIFIER:
        load_classifier(call.files)
        return description
    skipped = check_files(call.files)
    load_vocabulary(call.files)
    check_weights(call.files)
    return replace(description, skipped_tensors=skipped)


def quantize_files(call: Quantize) -> bool:
    from engines.decoder.weights.convert import write_quantized

    limit_file_size(call.most)
    write_quantized(call.files, call.path, call.kind)
    return True


def get_vocabulary(call: GetVocabulary) -> Vocabulary:
    return _tokenizers.get(call.files, call.digest).vocabulary()


def inspect_model(call: Inspect) -> Inspected:
    from modelfiles.capabilities import capabilities
    from modelfiles.outputs.parser import convention_for
    from modelfiles.templates.builtin import (
        PARSERS,
        RENDERERS,
        choose_template,
        parser_convention,
        renderer_template,
    )

    description = call.description
    if call.renderer in RENDERERS:
        template = renderer_template(call.renderer)
    else:
        template = choose_template(
            description.chat_template, call.template, description.architecture, call.names
        )
    found = capabilities(description, template, call.parser or None)
    if call.parser in PARSERS:
        convention = parser_convention(call.parser)
    else:
        convention = convention_for(template.text, description.architecture)
    return Inspected(template, found, convention)


def measure(call: Measure) -> Measured:
    """Fewer sequences before a shorter context; the smallest load there is when nothing fits."""
    from engines.decoder.params import largest_context, memory_needed, prefix_bytes

    room, room_size = _room(call)

    def measured(slots: int, context: int) -> Measured:
        size = memory_needed(call.files, slots, context, call.kv_type, call.device) + room_size
        size += prefix_bytes(call.files, context, call.budget - size, call.kv_type)
        return Measured(slots, context, size, room, room_size // (1 + room.slots) if room else 0)

    context = 0
    for budget in (call.budget, call.most):
        for slots in call.slots:
            fitting = largest_context(call.files, slots, budget - room_size, call.kv_type, call.device)
            context = min(call.wanted, fitting)
            if context >= min(call.wanted, LEAST_CONTEXT):
                return measured(slots, context)
    return measured(call.slots[-1], max(context, 1))


def _room(call: Measure) -> tuple[AdapterRoom | None, int]:
    """The room asked for, with half its slots as often as it takes too large a share; and its bytes."""
    from engines.decoder.adapter_files import room_bytes
    from engines.decoder.weights.headers import read_headers

    if call.room is None:
        return None, 0
    config, room = read_headers(call.files).config, call.room
    while room.slots > 1 and room_bytes(config, room) > call.most * ADAPTER_SHARE:
        room = replace(room, slots=room.slots // 2)
    return room, room_bytes(config, room)


def measure_adapter(call: MeasureAdapter) -> AdapterRoom:
    from engines.decoder.adapter_files import open_adapter, room_for
    from engines.decoder.weights.headers import read_headers

    return room_for(open_adapter(read_headers(call.files).config, call.adapter), call.slots)


def examine_adapter(call: ExamineAdapter) -> bool:
    from engines.decoder.adapter_files import check_adapter
    from engines.decoder.weights.headers import read_headers

    check_adapter(read_headers(call.files).config, call.adapter)
    return True


def prepare_chat(call: PrepareChat) -> Prepared:
    from modelfiles.templates.chat import render_chat
    from modelfiles.templates.guard import control_strings, encode_rendered

    tokenizer = _tokenizers.get(call.files, call.digest)
    prompt = ChatPrompt(
        template=call.template,
        messages=tuple(turn.message() for turn in call.turns),
        tools=call.tools,
        think=call.think,
        bos_token=tokenizer.bos_token or "",
        eos_token=tokenizer.eos_token or "",
        control_strings=_control_strings(call.digest, lambda: control_strings(tokenizer.vocabulary())),
        continue_final=call.continue_final,
        kwargs=call.kwargs,
    )
    token_ids, text = encode_rendered(tokenizer, render_chat(prompt))
    return Prepared(text, tuple(token_ids))


def prepare_completion(call: PrepareCompletion) -> Prepared:
    from modelfiles.templates.chat import render_completion
    from modelfiles.templates.guard import control_strings, encode_rendered

    tokenizer = _tokenizers.get(call.files, call.digest)
    rendered = render_completion(
        call.template,
        call.system,
        call.prompt,
        call.suffix,
        think=call.think,
        bos_token=tokenizer.bos_token or "",
        eos_token=tokenizer.eos_token or "",
        control_strings=_control_strings(call.digest, lambda: control_strings(tokenizer.vocabulary())),
    )
    token_ids, text = encode_rendered(tokenizer, rendered)
    return Prepared(text, tuple(token_ids))


_known_control_strings: dict[str, tuple[str, ...]] = {}


def _control_strings(digest: str, compute: Callable[[], frozenset[str]]) -> tuple[str, ...]:
    if digest not in _known_control_strings:
        if len(_known_control_strings) >= 4 * TOKENIZERS_KEPT:
            _known_control_strings.clear()
        _known_control_strings[digest] = tuple(compute())
    return _known_control_strings[digest]


def tokenize(call: Tokenize) -> list[int]:
    tokenizer = _tokenizers.get(call.files, call.digest)
    return tokenizer.encode(call.text, add_bos=call.add_bos, parse_special=call.special)


def detokenize(call: Detokenize) -> str:
    tokenizer = _tokenizers.get(call.files, call.digest)
    size = len(tokenizer.vocabulary().token_bytes)
    wrong = next((token_id for token_id in call.token_ids if token_id >= size), None)
    if wrong is not None:
        raise ValueError(f"token id {wrong} is not in the vocabulary of {size} tokens")
    return tokenizer.decode(call.token_ids)


def check_template_source(call: CheckTemplate) -> bool:
    from modelfiles.templates.chat import check_template

    check_template(call.template)
    return True


def check_grammar_source(call: CheckGrammar) -> bool:
    from engines.grammar import check_grammar

    check_grammar(call.grammar)
    return True


CALLS: dict[str, tuple[type[Any], Callable[[Any], Any]]] = {
    function_type.__name__: (function_type, function)
    for function_type, function in (
        (DecodeImage, decode_image),
        (Describe, describe_files),
        (ReadContents, contents_of_files),
        (Examine, examine_files),
        (Quantize, quantize_files),
        (GetVocabulary, get_vocabulary),
        (Inspect, inspect_model),
        (Measure, measure),
        (MeasureAdapter, measure_adapter),
        (ExamineAdapter, examine_adapter),
        (PrepareChat, prepare_chat),
        (PrepareCompletion, prepare_completion),
        (Tokenize, tokenize),
        (Detokenize, detokenize),
        (CheckTemplate, check_template_source),
        (CheckGrammar, check_grammar_source),
    )
}
"""Everything a worker can be asked to do."""


def answer(request: Request) -> Reply:
    """Runs one call; whatever it raises becomes a reply, except running out of time or memory."""
    kind, function = CALLS[request.call]
    try:
        call = msgspec.msgpack.decode(request.body, type=kind)
        return Reply(msgspec.msgpack.encode(function(call)))
    except MemoryError:
        raise
    except RecursionError:
        return Reply(error="RecursionError", message="the input is nested too deeply")
    except Exception as error:
        return Reply(error=type(error).__name__, message=_told(error)[:4000] or type(error).__name__)


def _told(error: Exception) -> str:
    """The text of an error; of the system's own without the path, which says where our store lies."""
    return (error.strerror or "") if isinstance(error, OSError) else str(error)


def serve(connection: socket.socket) -> None:
    """Answers requests until the gateway closes its end."""
    stream = connection.makefile("rb", buffering=2**16)
    while header := stream.read(HEADER.size):
        (length,) = HEADER.unpack(header)
        if length > MAX_FRAME:
            return
        request = msgspec.msgpack.decode(stream.read(length), type=Request)
        limit_processor_time(request.seconds)
        body = msgspec.msgpack.encode(answer(request))
        connection.sendall(HEADER.pack(len(body)) + body)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they reach the whole group; the gateway decides when we end
    limit_process()
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()

"""Examines one model in a process of its own: `python -m engines.decoder.checkup`, for `gemmule check`.

Reads a `Question` on stdin and writes an `Answer` to stdout, both as JSON. Whoever starts it has chosen the
device by the environment; only here is JAX loaded. `gateway.checking` asks for the short form.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from modelfiles.files import ModelFile
from modelfiles.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from engines.decoder.weights.loading import LoadedModel

PAGE: Final = Path(__file__).with_name("check_page.txt")
"""A tale in plain English, written for this: simple enough for a model of children's stories too."""
UNUSUAL_TEXT: Final = (
    "na\u00efve caf\u00e9 \u2013 12,345.67 \u20ac;  two spaces,\n\ta tab, \u4f60\u597d, \U0001f98a"
)
"""What tokenizers lose when their bytes, spaces or merges are read wrongly."""
LARGEST_FLOAT16: Final = 65504.0
LEAST_BITS: Final = 0.2
"""Bits per byte below which a model does not predict the page: it sees it."""
GREEDY_CHARACTERS: Final = 180
"""Of the page, where a greedy continuation begins."""
REPORT: Final = "report it: this family is computed wrongly here"

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Row:
    """One finding: what was looked at, how it is, the number or fault; `fix` is the way out."""

    name: str
    state: State
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What to look at.

    `short` leaves out what is looked at before a model is published, and most of the page. `greedy` tokens
    are continued from the page's beginning, to be compared with another program's.
    """

    files: tuple[ModelFile, ...]
    adapter: tuple[ModelFile, ...] = ()
    short: bool = False
    greedy: int = 0


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt, the model's greedy tokens after it, and the nats by which each of them was chosen."""

    text: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    margins: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    rows: tuple[Row, ...]
    greedy: Continuation | None = None


def check_model(question: Question) -> Answer:
    """What was found; what cannot be gone on after is the last row. Raises OSError only."""
    rows: list[Row] = []
    try:
        loaded = _load(question, rows)
        tokenizer = load_tokenizer(question.files)
    except _Ended as end:
        return Answer((*rows, end.row))
    except ValueError as error:
        fix = "create the model again with its tokenizer beside it"
        return Answer((*rows, Row("tokenizer", "fail", str(error), fix)))
    rows.append(round_trip(tokenizer))
    if loaded.config.bidirectional:
        rows.append(Row("text", "ok", "not measured: an embedding model predicts no text"))
        return Answer(tuple(rows))
    rows += page_rows(loaded, tokenizer, page(question.short))
    return Answer(tuple(rows), _continuation(loaded, tokenizer, question.greedy))


class _Ended(Exception):
    """Nothing more can be looked at after this row."""

    def __init__(self, row: Row) -> None:
        self.row = row


def _load(question: Question, rows: list[Row]) -> LoadedModel:
    """The weights, with the adapter beside them; adds a row for each."""
    from engines.decoder import weights

    try:
        if not question.short:
            weights.check_weights(question.files)
        model = weights.load(question.files)
    except ValueError as error:
        fix = "pull or create the model again from files that are whole"
        raise _Ended(Row("weights", "fail", str(error), fix)) from error
    rows.append(Row("weights", "ok", f"{model.description}; products by {model.kernels}"))
    if not question.adapter:
        return model
    try:
        return _adapted(model, question.adapter, rows)
    except ValueError as error:
        raise _Ended(Row("adapter", "fail", str(error), "create the model again with another one")) from error


def _adapted(model: LoadedModel, files: Sequence[ModelFile], rows: list[Row]) -> LoadedModel:
    import jax

    from engines.decoder.adapter_files import check_adapter, open_adapter, room_for
    from engines.decoder.adapters import empty_stacks, fill_slot, read_filling, with_stacks

    check_adapter(model.config, files)
    room = room_for(open_adapter(model.config, files))
    stacks = empty_stacks(model.config, room, jax.devices()[0])
    stacks = fill_slot(stacks, jax.numpy.int32(1), read_filling(model.config, room, files))
    rows.append(Row("adapter", "ok", f"rank up to {room.rank} on {', '.join(room.parts)}"))
    return replace(model, params=with_stacks(model.params, stacks))


def _continuation(model: LoadedModel, tokenizer: Tokenizer, count: int) -> Continuation | None:
    from engines.decoder.check import continue_greedily

    if not count:
        return None
    text = page()[:GREEDY_CHARACTERS]
    prompt = tuple(tokenizer.encode(text, add_bos=True))
    found = continue_greedily(model.config, model.params, prompt, count)
    return Continuation(text, prompt, found.tokens, found.margins)


def round_trip(tokenizer: Tokenizer) -> Row:
    """Whether text comes back from its tokens."""
    for text in (page(), UNUSUAL_TEXT):
        ids = tokenizer.encode(text)
        back = tokenizer.decode(ids)
        if back != text:
            pairs = zip(text, back, strict=False)
            at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            here = slice(at, at + 12)
            return Row(
                "tokenizer",
                "fail",
                f"text changes at character {at}: {text[here]!r} comes back as {back[here]!r}",
                "the tokenizer belongs to another model, or is of a kind that is read wrongly here",
            )
    return Row("tokenizer", "ok", f"round trip of {len(page()) + len(UNUSUAL_TEXT)} characters")


def page_rows(model: LoadedModel, tokenizer: Tokenizer, text: str) -> Iterator[Row]:
    """How large hidden values get on the page, and how much its text surprises the model."""
    from engines.decoder.check import GOOD_BITS, UNTRAINED_BITS, examine

    report = examine(model.config, model.params, tokenizer.encode(text, add_bos=True), len(text.encode()))
    bits, largest = report.bits_per_byte, report.largest_hidden
    if not (math.isfinite(bits) and math.isfinite(largest)):
        yield Row("values", "fail", "the model computes NaN or infinity", "its weights are damaged or wrong")
        return
    wide = largest > LARGEST_FLOAT16
    yield Row("values", "ok", f"largest hidden value {largest:.4g}{', beyond float16' if wide else ''}")
    said = f"{bits:.2f} bits per byte of plain text; a working model needs less than {GOOD_BITS}"
    if bits < LEAST_BITS:
        yield Row("text", "fail", f"{bits:.2f} bits per byte: it sees what it is to predict", REPORT)
    elif bits > UNTRAINED_BITS:
        fix = f"weights and tokenizer may not belong together; if they do, {REPORT}"
        yield Row("text", "fail", said, fix)
    elif bits > GOOD_BITS:
        yield Row("text", "warn", said, "normal for a very small model or one of code or another language")
    else:
        yield Row("text", "ok", said)


def page(short: bool = False) -> str:
    """The bundled page, or its first two paragraphs."""
    text = PAGE.read_text(encoding="utf-8")
    return "\n\n".join(text.split("\n\n")[:2]) if short else text


def main() -> None:
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    if question.short and hasattr(os, "nice"):
        os.nice(10)  # whoever is being answered goes first
    sys.stdout.buffer.write(msgspec.json.encode(check_model(question)))


if __name__ == "__main__":
    main()

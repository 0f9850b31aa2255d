"""Examines one model in a process of its own: `python -m engines.decoder.checkup`, for `gemmule check`.

Reads `{"files": [...]}` (the fields of `ModelFile`) on stdin and writes `{"rows": [...]}` to stdout, each row
a `Row`. Whoever starts it has chosen the device by the environment; only here is JAX loaded.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

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
REPORT: Final = "report it: this family is computed wrongly here"

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Row:
    """One finding: what was looked at, how it is, the number or fault; `fix` is the way out."""

    name: str
    state: State
    detail: str
    fix: str = ""


def check_model(files: Sequence[ModelFile]) -> Iterator[Row]:
    """All rows of a model; what cannot be gone on after is the last. Raises OSError only."""
    from engines.decoder import weights

    try:
        weights.check_weights(files)
        model = weights.load(files)
    except ValueError as error:
        yield Row("weights", "fail", str(error), "pull or create the model again from files that are whole")
        return
    yield Row("weights", "ok", f"{model.description}; products by {model.kernels}")
    try:
        tokenizer = load_tokenizer(files)
    except ValueError as error:
        yield Row("tokenizer", "fail", str(error), "create the model again with its tokenizer beside it")
        return
    yield round_trip(tokenizer)
    if model.config.bidirectional:
        yield Row("text", "ok", "not measured: an embedding model predicts no text")
        return
    yield from page_rows(model, tokenizer)


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


def page_rows(model: LoadedModel, tokenizer: Tokenizer) -> Iterator[Row]:
    """How large hidden values get on the page, and how much its text surprises the model."""
    from engines.decoder.check import GOOD_BITS, UNTRAINED_BITS, examine

    text = page()
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


def page() -> str:
    """The bundled page."""
    return PAGE.read_text(encoding="utf-8")


def main() -> None:
    files = [ModelFile(**fields) for fields in json.load(sys.stdin)["files"]]
    json.dump({"rows": [asdict(row) for row in check_model(files)]}, sys.stdout)


if __name__ == "__main__":
    main()

"""SentencePiece tokenizers: reads and writes `tokenizer.model` tables, and encodes with the C++ library.

The model is read with a small bounded protobuf reader, its control tokens are closed to plain text, and the
result is handed to the library. Also rebuilds a SentencePiece model from the token list of a GGUF.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

from modelfiles.tokenizer_base import MAX_VOCABULARY, TokenizerError

__all__ = ["Piece", "SentencePieceEncoder", "SentencePieceModel", "piece_bytes"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of a piece; GGUF's `token_type` uses the same numbers."""

UNIGRAM, BPE = 1, 2
SPACE: Final = "▁"

_TEXT_TAG: Final = b"\x0a"
_SCORE_TAG: Final = 0x15
_SCORE: Final = struct.Struct("<f")
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Piece(NamedTuple):
    """One entry of the vocabulary (a named tuple: there are hundreds of thousands)."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a `tokenizer.model` says. `charsmap` is the compiled normalization rule set, kept as it is."""

    pieces: tuple[Piece, ...]
    algorithm: int = BPE
    byte_fallback: bool = True
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""
    unknown_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unknown_surface: str | None = None

    @staticmethod
    def parse(data: bytes) -> SentencePieceModel:
        """Read a serialized model. Raises `TokenizerError` for anything else."""
        pieces: list[Piece] = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_parse_piece(value))
            elif number == 2 and isinstance(value, bytes):
                trainer = dict(_fields(value))
            elif number == 3 and isinstance(value, bytes):
                normalizer = dict(_fields(value))
            if len(pieces) > MAX_VOCABULARY:
                raise TokenizerError(f"the SentencePiece model has over {MAX_VOCABULARY} pieces")
        if not pieces:
            raise TokenizerError("this is no SentencePiece model: it holds no pieces")
        return SentencePieceModel(
            pieces=tuple(pieces),
            algorithm=_integer(trainer, 3, UNIGRAM),
            byte_fallback=bool(_integer(trainer, 35, 0)),
            add_dummy_prefix=bool(_integer(normalizer, 3, 1)),
            remove_extra_whitespaces=bool(_integer(normalizer, 4, 1)),
            charsmap=_octets(normalizer, 2),
            unknown_id=_integer(trainer, 40, 0),
            bos_id=_integer(trainer, 41, 1),
            eos_id=_integer(trainer, 42, 2),
            unknown_surface=_octets(trainer, 44).decode("utf-8", "replace") if 44 in trainer else None,
        )

    def serialize(self) -> bytes:
        """The model as the library reads it, repaired where the library would refuse it."""
        model = _repaired(self)
        out = bytearray()
        pack = struct.Struct("<Bf").pack
        for text, score, kind in model.pieces:
            body = _tagged(1, text.encode()) + pack(_SCORE_TAG, score)
            out += _tagged(1, body if kind == NORMAL else body + _number(3, kind))
        trainer = _number(3, model.algorithm) + _number(35, int(model.byte_fallback))
        trainer += _number(40, model.unknown_id) + _number(41, model.bos_id) + _number(42, model.eos_id)
        trainer += _number(43, -1)
        out += _tagged(2, trainer)
        normalizer = _tagged(1, b"identity") + _tagged(2, model.charsmap)
        normalizer += _number(3, int(model.add_dummy_prefix))
        normalizer += _number(4, int(model.remove_extra_whitespaces)) + _number(5, 1)
        return bytes(out + _tagged(3, normalizer))


class SentencePieceEncoder:
    """Encodes plain text. `prefix` says before which stretches of a prompt the dummy space is put."""

    def __init__(self, model: SentencePieceModel, prefix_after_special: bool = True) -> None:
        self._model = model
        self._size = len(model.pieces)
        self._prefix_after_special = prefix_after_special
        self._processor = _load(model)

    @cached_property
    def _without_prefix(self) -> Any:
        return _load(replace(self._model, add_dummy_prefix=False))

    def encode(self, text: str, first: bool) -> list[int]:
        """Ids of a stretch of plain text."""
        plain = self._model.add_dummy_prefix and not first and not self._prefix_after_special
        processor = self._without_prefix if plain else self._processor
        ids: list[int] = processor.encode(text)
        return ids if max(ids, default=0) < self._size else [each for each in ids if each < self._size]


def piece_bytes(piece: Piece) -> bytes:
    """The bytes a piece stands for in text."""
    if piece.kind == BYTE and len(piece.text) == 6:
        try:
            return bytes([int(piece.text[3:5], 16)])
        except ValueError:
            return piece.text.encode()
    if piece.kind in (CONTROL, UNKNOWN):
        return piece.text.encode()
    return piece.text.replace(SPACE, " ").encode()


def _load(model: SentencePieceModel) -> Any:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model.serialize())
    except Exception as error:
        raise TokenizerError(f"the SentencePiece library refuses this vocabulary: {error}") from error
    return processor


def _repaired(model: SentencePieceModel) -> SentencePieceModel:
    """A model the library accepts: distinct names, one unknown piece, all bytes or none."""
    bytes_there = {piece.text.upper() for piece in model.pieces if piece.kind == BYTE}
    fallback = all(f"<0X{value:02X}>" in bytes_there for value in range(256))
    seen: set[str] = set()
    pieces: list[Piece] = []
    for index, piece in enumerate(model.pieces):
        text, score, kind = piece
        if not text or text in seen or "\0" in text:
            text, kind = f"\ue000{index}", CONTROL  # unreachable from text: its id only keeps its place
        if (kind == UNKNOWN and index != model.unknown_id) or (kind == BYTE and not fallback):
            kind = CONTROL
        seen.add(text)
        pieces.append(piece if kind == piece.kind and text == piece.text else Piece(text, score, kind))
    unknown = model.unknown_id
    if 0 <= unknown < len(pieces):
        pieces[unknown] = pieces[unknown]._replace(kind=UNKNOWN)
    else:
        unknown = len(pieces)
        pieces.append(Piece("\ue001", 0.0, UNKNOWN))
    return replace(model, pieces=tuple(pieces), byte_fallback=fallback, unknown_id=unknown)


def _parse_piece(data: bytes) -> Piece:
    size = data[1] if len(data) > 6 else 0
    if data[:1] == _TEXT_TAG and size < 0x80 and len(data) == size + 7 and data[size + 2] == _SCORE_TAG:
        # a short text and a score, as nearly all pieces are: no need to walk the fields
        return Piece(
            data[2 : size + 2].decode("utf-8", "replace"), _SCORE.unpack_from(data, size + 3)[0], NORMAL
        )
    fields = dict(_fields(data))
    score, kind = fields.get(2, 0.0), fields.get(3, NORMAL)
    if not isinstance(score, float) or not isinstance(kind, int) or not NORMAL <= kind <= BYTE:
        raise TokenizerError("the SentencePiece model has a malformed piece")
    return Piece(_octets(fields, 1).decode("utf-8", "replace"), score, kind)


def _integer(fields: dict[int, Any], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise TokenizerError(f"field {number} of the SentencePiece model is not a number")
    return value - (1 << 64) if value >= 1 << 63 else value


def _octets(fields: dict[int, Any], number: int) -> bytes:
    value = fields.get(number, b"")
    if not isinstance(value, bytes):
        raise TokenizerError(f"field {number} of the SentencePiece model is not a string")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The (number, value) pairs of a protobuf message."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _read_varint(data, position)
            yield number, value
            continue
        if wire == _LENGTH:
            size, position = _read_varint(data, position)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise TokenizerError(f"this is no SentencePiece model: wire type {wire} at byte {position}")
        chunk = data[position : position + size]
        if len(chunk) != size:
            raise TokenizerError(f"the SentencePiece model is cut short at byte {position}")
        position += size
        yield number, float(struct.unpack("<f", chunk)[0]) if wire == _FIXED32 else chunk


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise TokenizerError(f"this is no SentencePiece model: bad number at byte {position}")


def _varint(value: int) -> bytes:
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


_ONE_BYTE: Final = [bytes([value]) for value in range(0x80)]


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _tagged(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(body)) + body


def close_to_text(pieces: Sequence[Piece], control: frozenset[int]) -> tuple[Piece, ...]:
    """The pieces with control tokens of another kind made control, so that plain text never matches them."""
    return tuple(
        piece._replace(kind=CONTROL) if index in control and piece.kind in (NORMAL, USER_DEFINED) else piece
        for index, piece in enumerate(pieces)
    )

"""Tokenizers on small vocabularies made here: control tokens, spans, BOS, end tokens, broken files."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfiles.files import FileRole, ModelFile
from modelfiles.gguf_writer import write_gguf
from modelfiles.tokenizer import (
    Tokenizer,
    TokenizerError,
    from_sentencepiece,
    load_tokenizer,
    load_vocabulary,
)
from modelfiles.tokenizer_bpe import byte_level_bytes, byte_level_text
from modelfiles.tokenizer_special import SpecialTokens
from modelfiles.tokenizer_spm import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
)

LETTERS = "▁abcdefghijklmnopqrstuvwxyz<>_|/."
WORDS = ("▁a", "he", "hel", "lo", "hello", "▁hello", "start", "of", "turn", "<s", "end")


def gemma_pieces() -> list[Piece]:
    """A vocabulary shaped like Gemma's: the turn markers are user-defined pieces."""
    pieces = [Piece("<pad>", 0, CONTROL), Piece("<eos>", 0, CONTROL), Piece("<bos>", 0, CONTROL)]
    pieces += [Piece("<unk>", 0, UNKNOWN), Piece("<start_of_turn>", 0, USER_DEFINED)]
    pieces += [Piece("<end_of_turn>", 0, USER_DEFINED), Piece("<table>", 0, USER_DEFINED)]
    pieces += [Piece(f"<0x{value:02X}>", 0, BYTE) for value in range(256)]
    pieces += [Piece(word, -float(rank), NORMAL) for rank, word in enumerate(WORDS)]
    return pieces + [Piece(letter, -100.0, NORMAL) for letter in LETTERS]


def ids_of(pieces: Sequence[Piece]) -> dict[str, int]:
    return {piece.text: index for index, piece in enumerate(pieces)}


PIECES = gemma_pieces()
IDS = ids_of(PIECES)


def write(
    folder: Path, name: str, data: bytes | str | Mapping[str, Any], role: FileRole = "tokenizer"
) -> ModelFile:
    if isinstance(data, Mapping):
        data = json.dumps(data)
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return ModelFile(role, name, str(path), "", path.stat().st_size)


def sentencepiece(folder: Path) -> Tokenizer:
    model = SentencePieceModel(tuple(PIECES), add_dummy_prefix=False, unknown_id=3, bos_id=2, eos_id=1)
    return load_tokenizer([write(folder, "tokenizer.model", model.serialize())])


def gguf_of(folder: Path, extra: Mapping[str, Any], pieces: Sequence[Piece] = PIECES) -> ModelFile:
    metadata = {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.text for piece in pieces],
        "tokenizer.ggml.scores": [float(piece.score) for piece in pieces],
        "tokenizer.ggml.token_type": [piece.kind for piece in pieces],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_space_prefix": False,
    } | extra
    path = folder / "model.gguf"
    write_gguf(path, {key: value for key, value in metadata.items() if value is not None}, [])
    return ModelFile("weights", "model.gguf", str(path), "", path.stat().st_size)


def gguf_llama(folder: Path) -> Tokenizer:
    return load_tokenizer([gguf_of(folder, {})])


MERGES = ["h e", "he l", "l o", "hel lo", "▁ hello", "▁ a", "\n \n", "s t", "e n", "en d"]


def gguf_gemma4(folder: Path) -> Tokenizer:
    pieces = [
        *PIECES,
        Piece("\n", 0, NORMAL),
        Piece("\n\n", 0, NORMAL),
        Piece("st", 0, NORMAL),
        Piece("en", 0, NORMAL),
    ]
    return load_tokenizer(
        [gguf_of(folder, {"tokenizer.ggml.model": "gemma4", "tokenizer.ggml.merges": MERGES}, pieces)]
    )


def byte_vocabulary() -> list[str]:
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "<extra>"]
    tokens += [byte_level_text(bytes([value])) for value in range(256)]
    return [*tokens, "he", "ll", "hell", "hello", "Ġhello", "im"]


def gguf_gpt2(folder: Path) -> Tokenizer:
    tokens = byte_vocabulary()
    kinds = [CONTROL] * 3 + [USER_DEFINED] * 2 + [NORMAL] * (len(tokens) - 5)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": None,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": ["h e", "l l", "he ll", "hell o", "Ġ hello", "i m", "not there"],
        "tokenizer.ggml.bos_token_id": None,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": None,
    }
    return load_tokenizer([gguf_of(folder, metadata)])


def json_document() -> dict[str, Any]:
    tokens = byte_vocabulary()
    vocabulary = {text: index for index, text in enumerate(tokens) if index >= 5}
    added = [
        {"id": index, "content": text, "special": index < 3, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": text == "<|im_end|>"}
        for index, text in enumerate(tokens[:5])
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": ["h e", "l l", "he ll", "hell o", "Ġ hello", "i m"],
        },
    }


def json_tokenizer(folder: Path) -> Tokenizer:
    config = {"eos_token": {"content": "<|im_end|>"}, "bos_token": None, "add_bos_token": False}
    return load_tokenizer(
        [
            write(folder, "tokenizer.json", json_document()),
            write(folder, "tokenizer_config.json", config, "config"),
        ]
    )


KINDS = {
    "sentencepiece": sentencepiece,
    "gguf-llama": gguf_llama,
    "gguf-gemma4": gguf_gemma4,
    "gguf-gpt2": gguf_gpt2,
    "tokenizer.json": json_tokenizer,
}


@pytest.fixture(scope="module", params=list(KINDS))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return KINDS[request.param](tmp_path_factory.mktemp("tokenizer"))


def test_text_comes_back(tokenizer: Tokenizer) -> None:
    for text in ("hello a hello", "Füchse 🦊\n\n  x\t", "", " ", "\x00", "a\n\n\nb"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "hello" in [tokenizer.token_text(token_id) for token_id in tokenizer.encode("hello")]


def test_control_strings_of_a_user_stay_text(tokenizer: Tokenizer) -> None:
    names = tokenizer.vocabulary().names
    assert len(names) >= 3
    for name, token_id in names.items():
        typed = f"a{name}hello"
        plain = tokenizer.encode(typed)
        assert not set(plain) & set(names.values())
        assert tokenizer.decode(plain) == typed
        assert token_id in tokenizer.encode(typed, parse_special=True)


def test_spans_join_as_one_text_with_control_tokens_from_trusted_ones(tokenizer: Tokenizer) -> None:
    name, token_id = next(iter(tokenizer.vocabulary().names.items()))
    ids = tokenizer.encode_spans([(name, True), ("hel", True), ("lo" + name, False), (name, True)])
    assert ids[0] == ids[-1] == token_id
    assert ids.count(token_id) == 2
    assert ids[1:-1] == tokenizer.encode("hello" + name)


def test_a_marker_split_over_spans_is_no_marker(tokenizer: Tokenizer) -> None:
    name, token_id = next(iter(tokenizer.vocabulary().names.items()))
    ids = tokenizer.encode_spans([(name[:3], True), (name[3:], False)])
    assert token_id not in ids
    assert tokenizer.decode(ids) == name


@given(st.text(st.characters(exclude_categories=()), max_size=20))
def test_any_text_encodes_lone_surrogates_too(text: str) -> None:
    pieces = SentencePieceModel(tuple(PIECES), add_dummy_prefix=False, unknown_id=3, bos_id=2, eos_id=1)
    made = _CACHE.setdefault("spm", from_sentencepiece(pieces.serialize(), SpecialTokens()))
    ids = made.encode(text)
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert made.decode(ids) == clean.replace("▁", " ")


_CACHE: dict[str, Tokenizer] = {}


def test_lone_surrogates(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_vocabulary_agrees_with_the_tokenizer(tokenizer: Tokenizer) -> None:
    table = tokenizer.vocabulary()
    assert all(tokenizer.token_bytes(index) == data for index, data in enumerate(table.token_bytes))
    assert table.control_token_ids <= frozenset(range(len(table.token_bytes)))
    assert all(table.token_bytes[token_id].decode() == name for name, token_id in table.names.items())
    assert set(table.end_token_ids) <= table.control_token_ids
    assert tokenizer.token_bytes(10**9) == b""
    assert tokenizer.decode([*table.end_token_ids, 10**9, -1]) == ""


def test_vocabulary_alone_is_the_same(tmp_path: Path) -> None:
    file = gguf_of(tmp_path, {})
    assert load_vocabulary([file]) == load_tokenizer([file]).vocabulary()


def test_end_tokens_are_found_by_string(tmp_path: Path) -> None:
    assert sentencepiece(tmp_path).vocabulary().end_token_ids == (IDS["<eos>"], IDS["<end_of_turn>"])
    assert gguf_llama(tmp_path).vocabulary().end_token_ids == (IDS["<eos>"], IDS["<end_of_turn>"])
    assert gguf_gpt2(tmp_path).vocabulary().end_token_ids == (2, 0)


def test_generation_config_adds_end_tokens(tmp_path: Path) -> None:
    files = [
        write(tmp_path, "tokenizer.json", json_document()),
        write(tmp_path, "generation_config.json", {"eos_token_id": [1, 0]}, "config"),
        write(tmp_path, "config.json", {"eos_token_id": 2}, "config"),
    ]
    assert load_tokenizer(files).vocabulary().end_token_ids == (1, 0, 2)


def test_harmony_end_marker_ends_a_message_not_the_turn(tmp_path: Path) -> None:
    pieces = [*PIECES, *(Piece(text, 0, CONTROL) for text in ("<|end|>", "<|return|>", "<|call|>"))]
    names = ids_of(pieces)
    ends = load_tokenizer([gguf_of(tmp_path, {}, pieces)]).vocabulary().end_token_ids
    assert names["<|return|>"] in ends
    assert names["<|end|>"] not in ends


def test_bos(tmp_path: Path) -> None:
    made = gguf_llama(tmp_path)
    assert (made.bos_token, made.eos_token) == ("<bos>", "<eos>")
    assert made.vocabulary().add_bos
    assert made.encode("a", add_bos=True) == [2, *made.encode("a")]
    assert made.encode("<bos>a", add_bos=True, parse_special=True) == [2, *made.encode("a")]
    assert made.encode("<bos>a", add_bos=True)[1:] == made.encode("<bos>a")
    assert (
        not load_tokenizer([gguf_of(tmp_path, {"tokenizer.ggml.add_bos_token": False})]).vocabulary().add_bos
    )


def test_user_defined_pieces_that_are_no_markers_are_matched(tmp_path: Path) -> None:
    for made in (sentencepiece(tmp_path), gguf_llama(tmp_path), gguf_gemma4(tmp_path)):
        assert made.encode("a<table>")[-1] == IDS["<table>"]
        assert made.decode([IDS["<table>"]]) == "<table>"


def test_tags_that_files_call_ordinary_are_shown_and_matched_in_any_text(tmp_path: Path) -> None:
    """As in the families' own tokenizers: `<think>` is a token like another, and templates write it."""
    for made in (gguf_gpt2(tmp_path), json_tokenizer(tmp_path)):
        assert made.encode("a<think>")[-1] == 3
        assert made.decode([3]) == "<think>"
        assert "<think>" not in made.vocabulary().names


def test_markers_are_control_tokens_whatever_the_file_calls_them(tmp_path: Path) -> None:
    pieces = [*PIECES, Piece("<|channel>", 0, USER_DEFINED), Piece("<|turn>", 0, NORMAL)]
    made = load_tokenizer([gguf_of(tmp_path, {}, pieces)])
    table = made.vocabulary()
    for name in ("<|channel>", "<|turn>", "<start_of_turn>"):
        assert table.names[name] in table.control_token_ids
        assert made.decode(made.encode(name)) == name


def test_space_prefix_is_put_and_taken_away(tmp_path: Path) -> None:
    made = load_tokenizer([gguf_of(tmp_path, {"tokenizer.ggml.add_space_prefix": True})])
    assert made.encode("hello") == [IDS["▁hello"]]
    assert made.vocabulary().strip_leading_space
    assert made.decode([IDS["▁hello"], IDS["▁hello"]]) == "hello hello"
    assert made.encode(" hello") == [IDS["▁"], IDS["▁hello"]]


def test_white_space_beside_a_stripping_token_goes(tmp_path: Path) -> None:
    made = json_tokenizer(tmp_path)
    ids = made.encode("a<|im_end|>\n  hello", parse_special=True)
    assert ids == [*made.encode("a"), 2, *made.encode("hello")]


def test_gemma4_newline_runs_and_bytes(tmp_path: Path) -> None:
    made = gguf_gemma4(tmp_path)
    assert [made.token_text(token_id) for token_id in made.encode("hello\n\n\n")] == ["hello", "\n\n", "\n"]
    assert len(made.encode("🦊")) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tokenizer.ggml.model": "rwkv"},
            "tokenizer model 'rwkv' is not supported; these are: gemma4, gpt2, llama",
        ),
        ({"tokenizer.ggml.tokens": None}, "holds no tokenizer"),
        ({"tokenizer.ggml.scores": [0.5, 0.5]}, "one number per token"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "martian"},
            "pre-tokenizer 'martian' is not known",
        ),
    ],
)
def test_what_a_gguf_may_lack(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer([gguf_of(tmp_path, change)])


def test_vocabularies_the_library_would_refuse_are_repaired(tmp_path: Path) -> None:
    odd = [
        Piece(piece.text, piece.score, CONTROL if piece.kind == UNKNOWN else piece.kind) for piece in PIECES
    ]
    odd += [Piece("", 0, NORMAL), Piece("hello", 0, NORMAL), Piece("x\0y", 0, NORMAL)]
    odd = [piece for piece in odd if piece.text != "<0xFF>"]
    made = load_tokenizer([gguf_of(tmp_path, {"tokenizer.ggml.unknown_token_id": None}, odd)])
    assert made.decode(made.encode("hello a")) == "hello a"
    assert max(made.encode("🦊"), default=0) < len(odd)


def test_files_are_chosen_in_order(tmp_path: Path) -> None:
    gguf = gguf_of(tmp_path, {})
    assert len(load_tokenizer([gguf]).vocabulary().token_bytes) == len(PIECES)
    both = [gguf, write(tmp_path, "tokenizer.json", json_document())]
    assert len(load_tokenizer(both).vocabulary().token_bytes) == len(byte_vocabulary())
    with pytest.raises(TokenizerError, match=r"hold no tokenizer: .* got nothing"):
        load_tokenizer([])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer.json", '{"model": {"vocab": {"a": -1}}}'),
        ("tokenizer.json", '{"model": {"vocab": {"a": 99999999999}}}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}}'),
        ("tokenizer.model", b""),
        ("tokenizer.model", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\n"),
        ("tokenizer.model", b"IQ== 0\nIQ== 1\n"),
        ("tokenizer.model", b"IQ== 5\n"),
        ("tokenizer.model", b"IQ== 0\n"),
    ],
)
def test_broken_files_are_tokenizer_errors(tmp_path: Path, name: str, data: bytes | str) -> None:
    with pytest.raises(TokenizerError):
        load_tokenizer([write(tmp_path, name, data)])


def test_a_broken_gguf_is_a_tokenizer_error(tmp_path: Path) -> None:
    file = gguf_of(tmp_path, {})
    data = Path(file.path).read_bytes()
    Path(file.path).write_bytes(data[: len(data) // 2])
    with pytest.raises(TokenizerError, match=r"model\.gguf: .*at byte"):
        load_tokenizer([file])


@pytest.mark.slow
def test_a_thousand_mutated_sentencepiece_files_load_or_are_refused() -> None:
    original = SentencePieceModel(tuple(PIECES), unknown_id=3, bos_id=2, eos_id=1).serialize()
    chance = random.Random(16)
    for _ in range(1000):
        data = bytearray(original)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        try:
            made = from_sentencepiece(bytes(data), SpecialTokens()).prepare()
        except TokenizerError:
            continue
        assert isinstance(made.decode(made.encode("hello 🦊 <eos>")), str)


@given(st.binary(max_size=20))
def test_byte_level_alphabet_is_one_to_one(data: bytes) -> None:
    text = byte_level_text(data)
    assert len(text) == len(data)
    assert byte_level_bytes(text) == data

"""Published token ids of real tokenizers: every vector file is checked, or listed below with the reason."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from modelfiles.files import ModelFile
from modelfiles.gguf_writer import write_gguf
from modelfiles.tokenizer import Tokenizer, load_tokenizer

Unpack = Callable[[str], Path]

FAST = {"llama-spm", "phi-3", "gpt-2", "sentencepiece/llama2", "tokenizers/mistral03"}
"""The rest takes a second each to load and runs in the slow tier."""

LLAMA_CPP = (
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "refact",
    "starcoder",
)

KITOKEN = {
    "sentencepiece/llama2": ("llama2/tokenizer.model", "tokenizer.model"),
    "sentencepiece/mistral01": ("mistral01/tokenizer.model", "tokenizer.model"),
    "sentencepiece/mistral03": ("mistral03/tokenizer.model", "tokenizer.model"),
    "tiktoken/cl100k_base": ("tiktoken/cl100k_base.tiktoken.xz", "tokenizer.model"),
    "tiktoken/o200k_base": ("tiktoken/o200k_base.tiktoken.xz", "tokenizer.model"),
    "tokenizers/gpt2": ("gpt2/tokenizer.json.xz", "tokenizer.json"),
    "tokenizers/gpt_neox": ("gpt_neox/tokenizer.json.xz", "tokenizer.json"),
    "tokenizers/llama2": ("llama2/tokenizer.json.xz", "tokenizer.json"),
    "tokenizers/llama32": ("llama3/tokenizer.model.xz", "tokenizer.model"),
    "tokenizers/llama33": ("llama-bpe", "model.gguf"),
    "tokenizers/mistral01": ("mistral01/tokenizer.json.xz", "tokenizer.json"),
    "tokenizers/mistral03": ("mistral03/tokenizer.json.xz", "tokenizer.json"),
}
"""Vectors -> the tokenizer they belong to. Llama 3's is checked from a rank file and from a GGUF."""

NOT_APPLICABLE = {
    "bert-bge": "WordPiece of an encoder-only model; no engine here runs one",
    "chameleon": "the vectors have no vocabulary file beside them",
    "command-r": "the vectors have no vocabulary file beside them",
    "deepseek-r1-qwen": "the vectors have no vocabulary file beside them",
    "qwen2": "the vectors have no vocabulary file beside them",
    "roberta-bpe": "the vectors have no vocabulary file beside them",
    "sentencepiece/gemma": "Gemma's tokenizer is not among the files",
    "sentencepiece/gemma3": "Gemma's tokenizer is not among the files",
    "tokenizers/gemma3": "Gemma's tokenizer is not among the files",
    "tokenizers/gemma4": "Gemma's tokenizer is not among the files",
    "tokenizers/qwen35": "Qwen's tokenizer is not among the files",
}


@pytest.fixture(scope="module")
def unpack(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Unpack:
    """A function from a file's name below the tokenizers to its path, decompressed."""
    folder = tmp_path_factory.mktemp("tokenizers")

    @cache
    def unpacked(name: str) -> Path:
        source = shared_data / "tokenizers" / name
        if source.suffix != ".xz":
            return source
        target = folder / name.replace("/", "-").removesuffix(".xz")
        target.write_bytes(lzma.decompress(source.read_bytes()))
        return target

    return unpacked


def load(path: Path, name: str) -> Tokenizer:
    role = "weights" if name.endswith(".gguf") else "tokenizer"
    return load_tokenizer([ModelFile(role, name, str(path), "", path.stat().st_size)])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llama3(unpack: Unpack, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Tokenizer]:
    """A function that makes a GGUF of Llama 3's vocabulary, released in GPT-2's two files, and loads it."""

    @cache
    def loaded() -> Tokenizer:
        return load(write_llama3(unpack, tmp_path_factory.mktemp("llama3") / "llama3.gguf"), "model.gguf")

    return loaded


def write_llama3(unpack: Unpack, path: Path) -> Path:
    ids: dict[str, int] = json.loads(unpack("ollama/llama3.2/encoder.json.xz").read_bytes())
    merges = unpack("ollama/llama3.2/vocab.bpe.xz").read_text("utf-8").split("\n")
    specials = {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|eot_id|>": 128009}
    tokens = [f"[unused{index}]" for index in range(max(specials.values()) + 1)]
    for text, index in (ids | specials).items():
        tokens[index] = text
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if index >= 128000 else 1 for index in range(len(tokens))],
        "tokenizer.ggml.merges": [merge for merge in merges if merge and not merge.startswith("#version")],
        "tokenizer.ggml.bos_token_id": 128000,
        "tokenizer.ggml.eos_token_id": 128009,
    }
    write_gguf(path, metadata, [])
    return path


def tiers(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", tiers(list(LLAMA_CPP)))
def test_llama_cpp(name: str, shared_data: Path, unpack: Unpack, llama3: Callable[[], Tokenizer]) -> None:
    folder = shared_data / "tokenizers/llama.cpp-vocab"
    source = f"llama.cpp-vocab/ggml-vocab-{name}.gguf.xz"
    tokenizer = llama3() if name == "llama-bpe" else load(unpack(source), "model.gguf")
    texts = (folder / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (folder / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")
    assert len(texts) >= 40
    for text, line in zip(texts, lines[: len(texts)], strict=True):
        ids = [int(word) for word in line.split()]
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", tiers(list(KITOKEN)))
def test_kitoken(name: str, shared_data: Path, unpack: Unpack, llama3: Callable[[], Tokenizer]) -> None:
    source, file_name = KITOKEN[name]
    tokenizer = llama3() if source == "llama-bpe" else load(unpack(source), file_name)
    folder = shared_data / "tokenizers/kitoken-vectors"
    kind, model = name.split("/")
    parse_special = kind != "sentencepiece"  # SentencePiece has no notion of special strings in text
    for size in ("small", "mixed", "utf8"):
        text = (folder / f"{size}_input.txt").read_bytes().decode()
        expected = (folder / kind / f"{size}_tokens_{model}.txt").read_text()
        whole = size == "utf8"
        texts = [text] if whole else text.split("\n")
        answers = [expected] if whole else expected.split("\n")
        for each, answer in zip(texts, answers, strict=True):
            if size == "small":
                each = each.replace("\\n", "\n").replace("\\s", " ")
            if "<|" in each and source == "llama-bpe":
                continue  # the reduced GGUF has not all of Llama 3's special tokens
            ids = [int(word) for word in re.findall(r"\d+", answer)]
            assert tokenizer.encode(each, parse_special=parse_special) == ids, each
        decoded = folder / kind / f"{size}_output_{model}.txt"
        if whole and decoded.exists():
            assert tokenizer.decode(ids) == decoded.read_bytes().decode()


def test_every_vector_is_checked_or_has_a_reason(shared_data: Path) -> None:
    folder = shared_data / "tokenizers"
    known = {*LLAMA_CPP, *KITOKEN, *NOT_APPLICABLE}
    for path in (folder / "llama.cpp-vocab").glob("*.out"):
        assert path.name.removeprefix("ggml-vocab-").removesuffix(".gguf.out") in known
    for path in (folder / "kitoken-vectors").glob("*/*_tokens_*.txt"):
        assert f"{path.parent.name}/{path.stem.split('_tokens_')[1]}" in known


@pytest.mark.slow
def test_old_gguf_without_pre_tokenizer_name(shared_data: Path, unpack: Unpack) -> None:
    """GPT-NeoX's file is from before `tokenizer.ggml.pre`: the architecture decides."""
    tokenizer = load(unpack("llama.cpp-vocab/ggml-vocab-gpt-neox.gguf.xz"), "model.gguf")
    folder = shared_data / "tokenizers/kitoken-vectors"
    texts = (folder / "mixed_input.txt").read_bytes().decode().split("\n")
    answers = (folder / "tokenizers/mixed_tokens_gpt_neox.txt").read_text().split("\n")
    for text, answer in zip(texts, answers, strict=True):
        assert tokenizer.encode(text) == [int(word) for word in re.findall(r"\d+", answer)]


@pytest.mark.slow
def test_one_vocabulary_in_four_containers_gives_the_same_ids(shared_data: Path, unpack: Unpack) -> None:
    """Llama 2's vocabulary: the SentencePiece file, two GGUFs by score, and one with merges and no scores."""
    text = lzma.decompress((shared_data / "text/war-and-peace.txt.xz").read_bytes()).decode()[:300_000]
    text += (shared_data / "tokenizers/kitoken-vectors/mixed_input.txt").read_text("utf-8")
    expected = load(unpack("llama2/tokenizer.model"), "tokenizer.model").encode(text)
    for name in (
        "llama.cpp-vocab/ggml-vocab-llama-spm",
        "gridcore/vocab-spm",
        "gridcore/vocab-spm-zeroscores",
    ):
        assert load(unpack(f"{name}.gguf.xz"), "model.gguf").encode(text) == expected, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_sentencepiece_files_as_the_library_itself_reads_them(
    kind: str, rule: str, shared_data: Path, tmp_path: Path
) -> None:
    """Our copy of the model, closed to control tokens, gives what the library gives for the file."""
    import sentencepiece

    folder = shared_data / "tokenizers/kitoken-vectors"
    texts = (folder / "utf8_input.txt").read_text("utf-8").split("\n") * 3
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(tmp_path / "m"),
        vocab_size=1300,
        model_type=kind,
        normalization_rule_name=rule,
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=["<table>"],
        minloglevel=2,
    )
    library = sentencepiece.SentencePieceProcessor(str(tmp_path / "m.model"))
    ours = load(tmp_path / "m.model", "tokenizer.model")
    for text in [*texts, *(folder / "mixed_input.txt").read_text("utf-8").split("\n"), "  a <table>  b ﬁ ① "]:
        ids = library.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == library.decode(ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_base_cased", "modernbert", "gpt_neox", "llama2", "mistral03"])
def test_tokenizer_json_as_the_library_itself_reads_it(name: str, shared_data: Path, unpack: Unpack) -> None:
    import tokenizers

    path = unpack(f"{name}/tokenizer.json.xz")
    library = tokenizers.Tokenizer.from_file(str(path))
    library.no_truncation()
    ours = load(path, "tokenizer.json")
    for text in (shared_data / "tokenizers/kitoken-vectors/mixed_input.txt").read_text("utf-8").split("\n"):
        for sample in (text, f"[CLS]{text} </s> <|endoftext|>[INST] {text[:9]}[SEP]"):
            assert (
                ours.encode(sample, parse_special=True)
                == library.encode(sample, add_special_tokens=False).ids
            )

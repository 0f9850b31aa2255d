"""Descriptions from headers: GGUF alone and in parts, safetensors folders, Orbax names, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from modelfiles.describe import DescribeError, describe, human_parameter_size
from modelfiles.files import FileRole, ModelFile
from modelfiles.gguf_writer import RawTensor, write_gguf
from tests.modelfiles.makers import write_safetensors

GGUF_METADATA: dict[str, Any] = {
    "general.architecture": "gemma3",
    "general.file_type": 7,
    "gemma3.context_length": 32768,
    "gemma3.embedding_length": 64,
    "gemma3.block_count": 1,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [f"t{n}" for n in range(10)],
    "tokenizer.chat_template": "{{ messages }}",
    "general.sampling.temp": 0.5,
    "short": [1, 2, 3],
    "names": ["a", "é"],
    "infinite": float("inf"),
    "finite": [0.5, float("nan")],
}


def model_file(path: Path, role: FileRole = "weights", name: str | None = None) -> ModelFile:
    return ModelFile(role, name or path.name, str(path), "sha256:" + "0" * 64, path.stat().st_size)


def folder_files(folder: Path) -> list[ModelFile]:
    def role(path: Path) -> FileRole:
        return "config" if path.suffix in (".json", ".jinja") else "weights"

    return [
        model_file(path, role(path), path.relative_to(folder).as_posix())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def write_model(path: Path, metadata: dict[str, Any] = GGUF_METADATA) -> ModelFile:
    tensors: list[tuple[str, Any]] = [
        ("token_embd.weight", RawTensor("Q8_0", (10, 64), np.zeros(680, np.uint8))),
        ("output_norm.weight", np.ones(64, np.float32)),
        ("v.patch_embd.weight", np.ones((2, 2), np.float16)),
    ]
    write_gguf(path, metadata, tensors)
    return model_file(path)


def test_gguf(tmp_path: Path) -> None:
    described = describe([write_model(tmp_path / "model.gguf")])
    assert (described.weight_format, described.architecture, described.quantization) == (
        "gguf",
        "gemma3",
        "Q8_0",
    )
    assert described.parameter_count == 10 * 64 + 64 + 4
    assert (described.context_length, described.embedding_length, described.vocabulary_size) == (
        32768,
        64,
        10,
    )
    assert described.chat_template == "{{ messages }}"
    assert described.capabilities == ("completion",)
    assert described.skipped_tensors == ("v.patch_embd.weight",)
    assert described.generation_defaults == {"temperature": 0.5}
    info = described.model_info
    assert (info["short"], info["names"]) == ([1, 2, 3], ["a", "é"])
    assert (info["infinite"], info["finite"]) == (None, [0.5, None])
    assert info["general.parameter_count"] == described.parameter_count
    assert info["tokenizer.ggml.tokens"] == []
    assert "tokenizer.chat_template" not in info
    json.dumps(info, allow_nan=False)


def test_gguf_without_file_type_goes_by_the_most_elements(tmp_path: Path) -> None:
    metadata = {key: value for key, value in GGUF_METADATA.items() if key != "general.file_type"}
    assert describe([write_model(tmp_path / "m.gguf", metadata)]).quantization == "Q8_0"


def test_pooling_makes_an_embedding_model(tmp_path: Path) -> None:
    described = describe([write_model(tmp_path / "m.gguf", GGUF_METADATA | {"gemma3.pooling_type": 1})])
    assert described.capabilities == ("embedding",)


def test_split_gguf_counts_all_parts_and_wants_them_all(tmp_path: Path) -> None:
    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    write_gguf(first, GGUF_METADATA, [("a", np.zeros((2, 3), np.float32))])
    write_gguf(second, {}, [("b", np.zeros(4, np.float32))], architecture="gemma3")
    files = [model_file(second), model_file(first)]
    assert describe(files).parameter_count == 10
    with pytest.raises(DescribeError, match=r"part 2 of 2 of the split model 'm' is missing"):
        describe(files[1:])


def test_several_models_are_ambiguous(tmp_path: Path) -> None:
    files = [write_model(tmp_path / "a.gguf"), write_model(tmp_path / "b.gguf")]
    with pytest.raises(DescribeError, match=r"several models here: a\.gguf, b\.gguf"):
        describe(files)


def test_a_projector_beside_the_model_is_no_second_model(tmp_path: Path) -> None:
    files = [
        write_model(tmp_path / "a.gguf"),
        write_model(tmp_path / "mmproj-a.gguf", {"general.architecture": "clip"}),
    ]
    assert describe(files).architecture == "gemma3"


def write_folder(folder: Path, config: dict[str, Any]) -> list[ModelFile]:
    shards: list[dict[str, Any]] = [
        {"model.embed_tokens.weight": np.zeros((12, 8), ml_dtypes.bfloat16)},
        {"model.norm.weight": np.zeros(8, np.float32)},
    ]
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-0000{number}-of-00002.safetensors"
        write_safetensors(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder_files(folder)


LLAMA_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "max_position_embeddings": 2048,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 12,
    "rope_theta": 1e4,
}


def test_safetensors_folder(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}'
    )
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "from config"}')
    described = describe(write_folder(tmp_path, LLAMA_CONFIG))
    assert (described.weight_format, described.architecture, described.quantization) == (
        "safetensors",
        "llama",
        "BF16",
    )
    assert described.parameter_count == 104
    assert (described.context_length, described.embedding_length, described.vocabulary_size) == (2048, 8, 12)
    assert described.model_info["llama.block_count"] == 3
    assert described.model_info["llama.attention.head_count"] == 2
    assert described.generation_defaults == {"temperature": 0.6, "top_k": 20, "repeat_penalty": 1.1}
    assert described.chat_template == "from config"
    (tmp_path / "chat_template.jinja").write_text("from file")
    assert describe(folder_files(tmp_path)).chat_template == "from file"


def test_multimodal_config_is_read_from_its_text_part(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 8}}
    described = describe(write_folder(tmp_path, config))
    assert (described.architecture, described.context_length, described.embedding_length) == (
        "gemma3",
        131072,
        8,
    )


@pytest.mark.parametrize(
    "parameters", [{"rope_theta": 5e5}, {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {}}]
)
def test_rope_base_of_newer_files(tmp_path: Path, parameters: dict[str, Any]) -> None:
    config = {key: value for key, value in LLAMA_CONFIG.items() if key != "rope_theta"}
    described = describe(write_folder(tmp_path, config | {"rope_parameters": parameters}))
    assert described.model_info["llama.rope.freq_base"] == 5e5


@pytest.mark.parametrize(
    ("config", "message"),
    [({"model_type": "martian"}, "unknown model_type 'martian'"), ({}, "unknown model_type None")],
)
def test_unknown_families_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(DescribeError, match=message):
        describe(write_folder(tmp_path, config))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    files = write_folder(tmp_path, LLAMA_CONFIG)
    with pytest.raises(DescribeError, match=r"'model-00002-of-00002\.safetensors', which is not among"):
        describe([file for file in files if "00002-of" not in file.name])


def test_orbax_folder(tmp_path: Path) -> None:
    """Both containers: names from the tree, shapes from it or beside it, dtypes from zarr headers."""
    shapes = {"layer_0.attn._query_norm.scale": [4], "embedder.input_embedding": [10, 4]}
    tree = {f"('{name}',)": {"value_metadata": {"write_shape": shape}} for name, shape in shapes.items()}
    (tmp_path / "_METADATA").write_text(json.dumps({"tree_metadata": tree}))
    described = describe(folder_files(tmp_path))
    assert (described.weight_format, described.architecture, described.quantization) == (
        "orbax",
        "gemma3",
        "unknown",
    )
    assert (described.parameter_count, described.vocabulary_size, described.embedding_length) == (44, 10, 4)
    assert described.model_info["gemma3.block_count"] == 1

    (tmp_path / "_METADATA").write_text(json.dumps({"tree_metadata": {name: {} for name in tree}}))
    assert describe(folder_files(tmp_path)).parameter_count == 0
    for name, shape in shapes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / ".zarray").write_text(json.dumps({"shape": shape, "dtype": "bfloat16"}))
    described = describe(folder_files(tmp_path))
    assert (described.parameter_count, described.quantization) == (44, "BF16")


@pytest.mark.slow
@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_orbax_folder_that_orbax_wrote(tmp_path: Path, use_ocdbt: bool) -> None:
    checkpoint = pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is an optional extra")
    leaf = pytest.importorskip("jax.numpy").zeros((10, 4))
    tree = {"embedder": {"input_embedding": leaf}, "layer_0": {"attn": {"attn_vec_einsum": {"w": leaf}}}}
    checkpoint.PyTreeCheckpointer(use_ocdbt=use_ocdbt).save(tmp_path / "2b", {"transformer": tree})
    described = describe(folder_files(tmp_path / "2b"))
    assert (described.weight_format, described.architecture, described.parameter_count) == (
        "orbax",
        "gemma",
        80,
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"tree_metadata": 5}', '{"tree_metadata": {"(1,)": 7}}'])
def test_orbax_folder_with_broken_metadata_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "_METADATA").write_text(text)
    with pytest.raises(DescribeError):
        describe(folder_files(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"PK\3\4")
    with pytest.raises(DescribeError, match=r"unsupported format: .* is a pickle"):
        describe([model_file(path)])


def test_nothing_known_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"hello")
    with pytest.raises(DescribeError, match=r"unsupported format: notes\.txt; expected GGUF"):
        describe([model_file(path)])
    with pytest.raises(DescribeError, match="no weight files"):
        describe([])


def test_a_truncated_gguf_is_a_describe_error_with_its_place(tmp_path: Path) -> None:
    file = write_model(tmp_path / "m.gguf")
    data = Path(file.path).read_bytes()
    Path(file.path).write_bytes(data[:-100])
    with pytest.raises(DescribeError, match=r"m\.gguf: .* cut short .*at byte"):
        describe([file])


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (260_000, "260K"),
        (1_000_000, "1M"),
        (268_098_176, "268.10M"),
        (1_000_000_000, "1B"),
        (4_300_079_472, "4.3B"),
        (8_030_261_248, "8.0B"),
        (70_553_706_496, "70.6B"),
    ],
)
def test_parameter_sizes_read_as_ollama_prints_them(count: int, text: str) -> None:
    assert human_parameter_size(count) == text

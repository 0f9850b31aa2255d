"""Creating models: from files, folders, uploads, llamafiles and other models; merging; what is refused."""

from __future__ import annotations

import asyncio
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from modelfiles.files import ModelFile
from modelfiles.modelfile import Modelfile
from registry.blobs import Digest, parse_digest
from registry.bundled import ensure_bundled
from registry.create import Quantize, create, human_count
from registry.errors import (
    BlobNotFound,
    InvalidArchive,
    InvalidModelfile,
    ModelCorrupt,
    ModelNotFound,
    RegistryError,
    UnsupportedFormat,
)
from registry.model import Model
from registry.progress import Progress
from registry.store import Store
from tests.registry.conftest import describe, gguf_bytes, safetensors_bytes


def make(
    store: Store,
    name: str,
    text: str,
    folder: Path | None = None,
    files: Mapping[str, Digest] | None = None,
    **more: Any,
) -> tuple[Model, list[str]]:
    """Creates a model; returns it and its progress lines."""
    lines: list[Progress] = []
    model = asyncio.run(
        create(
            store,
            name,
            Modelfile.parse(text),
            folder=folder,
            files=files,
            inspect=describe,
            on_progress=lines.append,
            **more,
        )
    )
    return model, [line.status for line in lines]


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """A folder with `fox.gguf`."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "fox.gguf").write_bytes(gguf_bytes(1, 100))
    return folder


def test_from_a_gguf_with_everything_said(store: Store, gguf: Path) -> None:
    text = (
        "FROM ./fox.gguf\nSYSTEM be sly\nTEMPLATE {{ .Prompt }}\n"
        "PARAMETER temperature 0.5\nPARAMETER stop a\n"
        "PARAMETER stop b\nLICENSE free\nMESSAGE user hi\nMESSAGE assistant yes\n"
    )
    model, lines = make(store, "fox", text, gguf)
    assert lines[-2:] == ["writing manifest", "success"]
    assert "parsing GGUF" in lines
    assert sum(line.startswith("creating new layer sha256:") for line in lines) == 7
    assert store.get("fox") == model
    assert (model.system, model.template, model.licenses) == ("be sly", "{{ .Prompt }}", ("free",))
    assert model.parameters == {"temperature": 0.5, "stop": ["a", "b"]}
    assert [(message.role, message.text) for message in model.messages] == [
        ("user", "hi"),
        ("assistant", "yes"),
    ]
    assert (model.config.model_family, model.config.file_type) == ("llama", "F32")
    assert Path(model.files[0].path).read_bytes() == gguf_bytes(1, 100)
    assert model.parent_model == ""


def test_over_another_model(store: Store, gguf: Path) -> None:
    make(
        store,
        "fox",
        "FROM fox.gguf\nSYSTEM a\nTEMPLATE t\nPARAMETER top_k 3\nPARAMETER seed 1\n"
        "LICENSE one\nMESSAGE user x",
        gguf,
    )
    base = store.get("fox")
    model, lines = make(
        store, "wolf", "FROM FOX\nPARAMETER top_k 9\nSYSTEM b\nLICENSE two\nPARSER p\nREQUIRES 0.5.0"
    )
    assert model.parameters == {"top_k": 9, "seed": 1}
    assert (model.system, model.template, model.licenses) == ("b", "t", ("one", "two"))
    assert [message.text for message in model.messages] == ["x"]
    assert (model.config.parser, model.config.requires) == ("p", "0.5.0")
    assert model.weights_digest == base.weights_digest
    assert model.files[0].digest == base.files[0].digest
    assert model.parent_model == "fox:latest"
    assert any(line.startswith("using existing layer") for line in lines)
    replaced, _ = make(store, "wolf", 'FROM wolf\nMESSAGE user y\nSYSTEM ""')
    assert [message.text for message in replaced.messages] == ["y"]
    assert replaced.system is None
    with pytest.raises(ModelNotFound):
        make(store, "x", "FROM ghost")
    with pytest.raises(ModelNotFound):
        make(store, "x", "FROM fox.gguf")  # no folder was given: only a name can be meant
    with pytest.raises(InvalidModelfile, match="neither a file here nor the name"):
        make(store, "x", "FROM /etc/passwd")


def test_from_a_folder_of_safetensors(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    (folder / "nested").mkdir(parents=True)
    for part in (1, 2):
        (folder / f"model-0000{part}-of-00002.safetensors").write_bytes(safetensors_bytes(part))
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "nested/more.json",
    ):
        (folder / name).write_text("{}" + name)
    (folder / "tokenizer.model").write_bytes(b"\x0a")
    (folder / "consolidated.00.safetensors").write_bytes(safetensors_bytes(3))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    (folder / ".git").mkdir()
    (folder / ".git" / "config.json").write_text("{}")
    model, lines = make(store, "fox", "FROM .", folder)
    assert "converting model" in lines
    by_role: dict[str, set[str]] = {}
    for file in model.files:
        by_role.setdefault(file.role, set()).add(file.name)
        assert Path(file.path).read_bytes() == (folder / file.name).read_bytes()
    assert by_role == {
        "weights": {f"model-0000{part}-of-00002.safetensors" for part in (1, 2)},
        "tokenizer": {"tokenizer.json", "tokenizer.model"},
        "config": {"config.json", "tokenizer_config.json", "chat_template.jinja", "nested/more.json"},
    }
    assert model.parameters == {"top_k": 64}


@pytest.mark.parametrize("nested", [False, True])
def test_from_an_orbax_tree(store: Store, tmp_path: Path, nested: bool) -> None:
    folder = tmp_path / "gemma"
    tree = folder / "2b" if nested else folder
    (tree / "d").mkdir(parents=True)
    for name in ("_METADATA", "manifest.ocdbt", "d/0abc"):
        (tree / name).write_text(name)
    (folder / "tokenizer.model").write_bytes(b"\x0a")
    (folder / "config.json").write_text("{}")
    model, _ = make(store, "gemma", "FROM .", folder)
    prefix = "2b/" if nested else ""
    weights = {file.name for file in model.files if file.role == "weights"}
    assert weights == {f"{prefix}{name}" for name in ("_METADATA", "manifest.ocdbt", "d/0abc")}
    assert {file.role for file in model.files} == {"weights", "tokenizer", "config"}


def test_links_that_leave_the_folder_are_refused(store: Store, gguf: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (gguf / "config.json").symlink_to(secret)
    with pytest.raises(InvalidModelfile, match=r"insecure path: config\.json"):
        make(store, "fox", "FROM .", gguf)
    assert not list(store.blobs.digests())


def test_a_hub_caches_snapshot_is_linked_not_copied(store: Store, tmp_path: Path) -> None:
    cache = tmp_path / "models--org--fox"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for name, data in (("model.safetensors", safetensors_bytes()), ("config.json", b"{}")):
        (cache / "blobs" / name[:3]).write_bytes(data)
        (snapshot / name).symlink_to(cache / "blobs" / name[:3])
    model, _ = make(store, "fox", f"FROM {snapshot}", tmp_path)
    assert Path(model.files[0].path).samefile(cache / "blobs" / "mod")
    assert not Path(model.files[0].path).is_symlink()
    (cache / "blobs" / "mod").unlink()  # the hub's own client tidies up
    assert Path(model.files[0].path).read_bytes() == safetensors_bytes()


def test_a_version_in_kaggles_own_cache_is_linked(store: Store, tmp_path: Path) -> None:
    version = tmp_path / "kagglehub" / "models" / "google" / "gemma" / "flax" / "2b-it" / "3"
    tree = {"2b-it/_METADATA": b"{}", "2b-it/checkpoint": b"c" * 500, "tokenizer.model": b"t"}
    for name, data in tree.items():
        (version / name).parent.mkdir(parents=True, exist_ok=True)
        (version / name).write_bytes(data)
    (version.parent / "3.complete").touch()
    model, _ = make(store, "gemma", f"FROM {version}", tmp_path)
    assert all(Path(file.path).samefile(version / file.name) for file in model.files)
    (version.parent / "3.complete").unlink()
    (version / "tokenizer.model").unlink()
    (version / "tokenizer.model").write_bytes(b"other")
    model, _ = make(store, "gemma", f"FROM {version}", tmp_path)
    files = {file.name: Path(file.path) for file in model.files}
    assert not files["tokenizer.model"].samefile(version / "tokenizer.model")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.pt", b"\x80\x02cos\nsystem\n"), ("model.bin", b"PK\x03\x04"), ("x.npy", b"\x93NUMPY"),
        ("model.gguf", b"not a gguf"), ("x.txt", b"hello"), ("empty.gguf", b""),
        ("m.safetensors.pkl", b"\x80"),
    ],
)  # fmt: skip
def test_formats_that_are_refused(store: Store, tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / name).write_bytes(data)
    for target in (f"f/{name}", "f"):
        with pytest.raises((UnsupportedFormat, InvalidArchive), match=r"unsupported format|archive"):
            make(store, "fox", f"FROM {target}", tmp_path)
    blob = store.blobs.put_bytes(data)
    with pytest.raises((UnsupportedFormat, InvalidArchive)):
        make(store, "fox", "FROM x", files={name: blob.digest})
    assert store.list() == []


def test_a_device_is_no_model(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.gguf")
    for target in ("/dev/zero", "fifo.gguf"):
        with pytest.raises(UnsupportedFormat, match="no regular file"):
            make(store, "fox", f"FROM {target}", tmp_path)


def test_from_uploaded_blobs(store: Store) -> None:
    weights = store.blobs.put_bytes(gguf_bytes(5))
    model, _ = make(store, "fox", "FROM whatever", files={"fox.gguf": weights.digest})
    assert [(file.digest, file.role) for file in model.files] == [(weights.digest, "weights")]
    config, tensors = store.blobs.put_bytes(b"{}"), store.blobs.put_bytes(safetensors_bytes())
    files = {"model.safetensors": tensors.digest, "config.json": config.digest}
    model, _ = make(store, "bear", "FROM x", files=files)
    assert {file.name: file.digest for file in model.files} == files
    ghost = parse_digest("sha256:" + "0" * 64)
    with pytest.raises(BlobNotFound):
        make(store, "x", "FROM x", files={"a.gguf": ghost})
    for name in ("../a.gguf", "/a.gguf", "a/../../b.gguf"):
        with pytest.raises(InvalidModelfile, match="file path must be relative"):
            make(store, "x", "FROM x", files={name: weights.digest})


def test_the_gguf_inside_a_llamafile(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "fox.llamafile"
    path.write_bytes(b"MZqFpD='\n" + b"#!/bin/sh\n" * 100)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(".args", "-m\nfox.gguf\n")
        archive.writestr("fox.gguf", gguf_bytes(8, 5000))
    model, _ = make(store, "fox", "FROM fox.llamafile", tmp_path)
    assert Path(model.files[0].path).read_bytes() == gguf_bytes(8, 5000)


def test_adapters(store: Store, gguf: Path) -> None:
    (gguf / "lora.gguf").write_bytes(gguf_bytes(9))
    peft = gguf / "peft"
    peft.mkdir()
    (peft / "adapter_model.safetensors").write_bytes(safetensors_bytes())
    (peft / "adapter_config.json").write_text("{}")
    fox, _ = make(store, "fox", "FROM fox.gguf\nADAPTER lora.gguf", gguf)
    ((single,),) = fox.adapters
    assert single.role == "adapter"
    owl, _ = make(store, "owl", "FROM fox.gguf\nADAPTER ./peft", gguf)
    (several,) = owl.adapters
    assert {file.name for file in several} == {"adapter_model.safetensors", "adapter_config.json"}
    plain, _ = make(store, "plain", "FROM fox.gguf", gguf)
    assert plain.weights_digest == fox.weights_digest == owl.weights_digest
    derived, _ = make(store, "derived", "FROM fox\nSYSTEM x")
    assert derived.adapters == fox.adapters
    other, _ = make(store, "other", "FROM fox\nADAPTER ./peft", gguf)
    assert other.adapters == owl.adapters
    with pytest.raises(InvalidModelfile, match="no such file"):
        make(store, "x", "FROM fox\nADAPTER ghost.gguf", gguf)


def test_a_second_adapter_is_refused(store: Store, gguf: Path) -> None:
    first, second = (store.blobs.put_bytes(gguf_bytes(seed)).digest for seed in (8, 9))
    with pytest.raises(InvalidModelfile, match="only one adapter"):
        make(store, "x", "FROM fox.gguf", gguf, adapters={"a.gguf": first, "b.gguf": second})
    two = Modelfile("fox.gguf", adapters=("a.gguf", "b.gguf"))
    with pytest.raises(InvalidModelfile, match="only one adapter"):
        asyncio.run(create(store, "x", two, folder=gguf, inspect=describe))


def test_an_adapter_that_does_not_fit_is_refused_by_the_name_it_was_given(store: Store, gguf: Path) -> None:
    (gguf / "lora.gguf").write_bytes(gguf_bytes(9))
    seen: list[tuple[str, ...]] = []

    async def refuse(weights: Sequence[ModelFile], adapter: Sequence[ModelFile]) -> None:
        seen.append((*(file.role for file in weights), *(file.role for file in adapter)))
        raise InvalidModelfile("too wide")

    with pytest.raises(InvalidModelfile, match=r"^ADAPTER '\./lora\.gguf': too wide"):
        make(store, "fox", "FROM fox.gguf\nADAPTER ./lora.gguf", gguf, check_adapter=refuse)
    assert seen == [("weights", "adapter")]
    assert store.list() == []
    make(store, "fox", "FROM fox.gguf", gguf, check_adapter=refuse)


def test_a_create_that_fails_changes_nothing(store: Store, gguf: Path) -> None:
    model, _ = make(store, "fox", "FROM fox.gguf\nSYSTEM old", gguf)
    (gguf / "new.gguf").write_bytes(gguf_bytes(77))

    async def refuse(files: object) -> Any:
        raise UnsupportedFormat("unsupported format: a lie")

    with pytest.raises(RegistryError, match="a lie"):
        asyncio.run(create(store, "fox", Modelfile.parse("FROM new.gguf"), folder=gguf, inspect=refuse))
    assert store.get("fox") == model
    store.collect_garbage()
    assert set(store.blobs.digests()) == set(store.entry("fox").manifest.blobs())


@pytest.mark.parametrize(
    ("count", "text"),
    [(7, "7"), (96_000, "96K"), (268_098_176, "268.10M"), (5_000_000, "5M"),
     (3_212_749_888, "3.2B"), (7_000_000_000, "7B")],
)  # fmt: skip
def test_counts_as_ollama_writes_them(count: int, text: str) -> None:
    assert human_count(count) == text


def test_the_bundled_model_is_published_once_and_stays_removed(store: Store, gguf: Path) -> None:
    (gguf / "fox.gguf").rename(gguf / "bud.gguf")
    (gguf / "Modelfile").write_text("FROM ./bud.gguf\nSYSTEM a bud\n")

    def publish() -> Model | None:
        return ensure_bundled(store, describe, gguf)

    first = publish()
    assert first is not None
    assert store.get("bud").system == "a bud"
    assert publish() is None
    store.delete("bud")
    assert publish() is None
    assert store.list() == []
    (gguf / "Modelfile").write_text("FROM ./bud.gguf\nSYSTEM a newer bud\n")
    assert publish() is None  # removed is removed
    fresh = Store.open(store.root.parent / "other")
    make(fresh, "bud", "FROM bud.gguf\nSYSTEM mine", gguf)
    assert ensure_bundled(fresh, describe, gguf) is None
    assert fresh.get("bud").system == "mine"
    assert ensure_bundled(fresh, describe, gguf / "nowhere") is None


def in_q8_0(write: Callable[[Sequence[ModelFile], Path], None]) -> Quantize:
    async def written(files: Sequence[ModelFile], path: Path) -> None:
        write(files, path)

    return Quantize("Q8_0", written)


def test_quantized_weights_take_the_place_of_floats(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(safetensors_bytes(1))
    for name in ("model.safetensors.index.json", "config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    seen: list[str] = []

    def write(files: Sequence[ModelFile], path: Path) -> None:
        seen.extend(file.name for file in files)
        path.write_bytes(gguf_bytes(7))

    model, lines = make(store, "few", f"FROM {folder}\nSYSTEM s", folder, quantize=in_q8_0(write))
    assert "quantizing F32 model to Q8_0" in lines
    assert "model.safetensors" in seen
    weights = [file for file in model.files if file.role == "weights"]
    assert [Path(file.path).read_bytes() for file in weights] == [gguf_bytes(7)]
    beside = {file.name for file in model.files if file.role != "weights"}
    assert beside == {"config.json", "tokenizer.json"}
    assert (model.config.model_format, model.system) == ("gguf", "s")
    assert list((store.root / "staging").glob("*.tmp")) == []


def test_a_quantizer_that_fails_leaves_nothing(store: Store, gguf: Path) -> None:
    def fail(files: Sequence[ModelFile], path: Path) -> None:
        path.write_bytes(b"half")
        raise InvalidModelfile("no")

    def replace_file(files: Sequence[ModelFile], path: Path) -> None:
        path.unlink()
        path.write_bytes(b"another file")

    for write, fault in ((fail, InvalidModelfile), (replace_file, ModelCorrupt)):
        with pytest.raises(fault):
            make(store, "few", "FROM ./fox.gguf", gguf, quantize=in_q8_0(write))
    assert list((store.root / "staging").glob("*.tmp")) == []
    assert store.list() == []

"""Makes a model from a Modelfile: from another model, from local files or from uploaded blobs.

Weights become layers as they are; what the Modelfile says becomes small layers over its base's. Every
blob is durable and under a lease before the manifest names it. Reading headers is the caller's `inspect`
(in a sandbox): this module never parses a weight file.
"""

from __future__ import annotations

import inspect as python_inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from modelfiles.description import ModelDescription
from modelfiles.files import ModelFile
from modelfiles.messages import Message
from registry.blobs import Blob, Digest, blob_path, parse_digest
from registry.errors import BlobNotFound, InvalidModelfile, InvalidName
from registry.locks import Lease
from registry.manifest import CONFIG_TYPE, MEDIA_TYPES, Layer, Manifest, ModelConfig
from registry.model import FILE_ROLES, TOKENIZER_NAMES, Model, default_file_name
from registry.name import ModelName
from registry.progress import OnProgress, Progress
from registry.sources.local import Part, classify, is_llamafile, parts_of_path
from registry.store import Store
from registry.threads import in_thread
from registry.unpack import unpack_llamafile

if TYPE_CHECKING:
    from modelfiles.modelfile import Modelfile

Inspect = Callable[[Sequence[ModelFile]], ModelDescription | Awaitable[ModelDescription]]
CheckAdapter = Callable[[Sequence[ModelFile], Sequence[ModelFile]], Awaitable[None]]
"""Raises InvalidModelfile unless an adapter (second) fits the weights (first)."""
FLOAT_TYPES = frozenset({"F32", "F16", "BF16"})
"""What weights must be stored as to be quantized."""

_FORMAT_STATUS = {"gguf": "parsing GGUF", "safetensors": "converting model", "orbax": "converting model"}
ADAPTER_HEADS = (".gguf", "adapter_config.json")
"""How the one file of each adapter ends that tells adapters apart."""
_TEXT_KINDS = ("template", "system", "params", "messages", "license", "prompt")


@dataclass(frozen=True, slots=True)
class Quantize:
    """A storage type to bring float weights to, by its shown name (`Q4_K_M`), and who does it.

    `write` reads the files and fills the empty file at the path with one GGUF.
    """

    name: str
    write: Callable[[Sequence[ModelFile], Path], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Base:
    """What a model is built on: its weight layers, its config, and the layers that may be replaced."""

    layers: tuple[Layer, ...]
    config: ModelConfig
    texts: tuple[Layer, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


async def create(
    store: Store,
    name: ModelName | str,
    modelfile: Modelfile,
    *,
    folder: Path | None = None,
    files: Mapping[str, Digest] | None = None,
    adapters: Mapping[str, Digest] | None = None,
    inspect: Inspect,
    check_adapter: CheckAdapter | None = None,
    quantize: Quantize | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Model:
    """Makes (or replaces) the model `name`.

    `files` and `adapters` are uploaded blobs by file name; without `files` the Modelfile's FROM is a path
    (only where `folder`, which relative paths start from, is given) or the name of a model in the store.
    With `quantize` its weights, which must be floats, are stored in that type instead.
    Raises ModelNotFound for an unknown base, BlobNotFound, UnsupportedFormat, InvalidModelfile, DiskFull.
    """
    target = name if isinstance(name, ModelName) else ModelName.parse(name)
    with await in_thread(store.lease_empty) as lease:
        job = ModelBuilder(store, lease, on_progress)
        parts = await in_thread(job.find_parts, modelfile, folder, files)
        if parts is None:
            base = await in_thread(job.base_of_model, modelfile.base)
        else:
            layers = await in_thread(job.store_parts, parts)
            description = await job.describe(layers, inspect)
            base = fresh_base(layers, description)
        if quantize is not None:
            base = await job.quantized(base, quantize, inspect)
        added = await in_thread(job.adapter_layers, modelfile, folder, adapters)
        if added and check_adapter is not None:
            await job.checked(base, added, next(iter(adapters or modelfile.adapters)), check_adapter)
        return await in_thread(job.write, target, modelfile, base, added)


def fresh_base(layers: Sequence[Layer], description: ModelDescription, texts: Sequence[Layer] = ()) -> Base:
    """The base that files make, with the texts that lay beside them."""
    config = ModelConfig(
        model_format=description.weight_format,
        model_family=description.architecture,
        model_families=(description.architecture,),
        model_type=human_count(description.parameter_count),
        file_type=description.quantization,
        capabilities=description.capabilities,
        context_length=description.context_length,
        embedding_length=description.embedding_length,
    )
    return Base(tuple(layers), config, tuple(texts), description.generation_defaults)


def human_count(count: int) -> str:
    """A parameter count as Ollama writes it: `3.2B`, `268.10M`, `96K`."""
    if count >= 1_000_000_000:
        return f"{count / 1e9:.1f}B" if count % 1_000_000_000 else f"{count // 1_000_000_000}B"
    if count >= 1_000_000:
        return f"{count / 1e6:.2f}M" if count % 1_000_000 else f"{count // 1_000_000}M"
    return f"{count / 1e3:.0f}K" if count >= 1_000 else str(count)


class ModelBuilder:
    """One creation: the store, the lease that protects its blobs, and where progress goes. Blocking."""

    def __init__(self, store: Store, lease: Lease, on_progress: OnProgress = lambda progress: None) -> None:
        self._store = store
        self._lease = lease
        self._on_progress = on_progress

    # finding the weights

    def find_parts(
        self, modelfile: Modelfile, folder: Path | None, files: Mapping[str, Digest] | None
    ) -> list[Part] | None:
        """The files FROM means, or None when it means a model of the store."""
        if files:
            return self._uploaded_parts(files)
        if not modelfile.base:
            raise InvalidModelfile("neither 'from' or 'files' was specified")
        if folder is None:
            return None
        path = folder / Path(modelfile.base).expanduser()
        if not path.exists():
            return None
        parts = self._llamafile(path) if path.is_file() and is_llamafile(path) else parts_of_path(path)
        for text, kind in [*((base, "projector") for base in modelfile.bases), (modelfile.draft, "draft")]:
            if text is not None:
                parts += self._further(text, kind, folder)
        return parts

    def _further(self, text: str, kind: str, folder: Path) -> list[Part]:
        """The parts that a second FROM or a DRAFT names."""
        path = folder / Path(text).expanduser()
        if not path.exists():
            raise InvalidModelfile(f"{'DRAFT' if kind == 'draft' else 'FROM'} {text[:200]!r}: no such file")
        return [replace(part, kind=kind) for part in parts_of_path(path)]

    def _uploaded_parts(self, files: Mapping[str, Digest]) -> list[Part]:
        paths = {}
        for name, digest in files.items():
            if name.startswith("/") or ".." in name.split("/"):
                raise InvalidModelfile("file path must be relative")
            self._lease.add([digest])
            path = self._store.blobs.find(digest)
            if path is None:
                raise BlobNotFound(digest)
            paths[name] = path
        if len(paths) == 1:
            ((name, path),) = paths.items()
            if name.endswith(".llamafile"):
                return self._llamafile(path)
        return classify(paths, next(iter(paths)))

    def _llamafile(self, path: Path) -> list[Part]:
        blob = unpack_llamafile(self._store, self._lease, path)
        return [Part("model", None, blob_path(self._store.root, blob.digest))]

    # weights

    def base_of_model(self, text: str) -> Base:
        """The layers and texts of a model in the store; its blobs become our own where they were not."""
        try:
            entry = self._store.entry(ModelName.parse(text))
        except InvalidName as error:
            raise InvalidModelfile(
                f"FROM {text[:200]!r} is neither a file here nor the name of a model: {error}"
            ) from error
        self._lease.add(entry.manifest.blobs())
        for layer in (entry.manifest.config, *entry.manifest.layers):
            self._store.blobs.adopt(layer.digest, layer.size)
        config = ModelConfig.parse(
            self._store.blobs.read(entry.manifest.config.digest, entry.manifest.config.size)
        )
        source = entry.name.display()
        weights: list[Layer] = []
        texts: list[Layer] = []
        for layer in entry.manifest.layers:
            (texts if layer.kind in _TEXT_KINDS else weights).append(layer)
        layers = tuple(replace(each, source=source) if each.kind == "model" else each for each in weights)
        for layer in layers:
            self._say_layer(layer, existed=True)
        return Base(layers, config, tuple(texts))

    def store_parts(self, parts: Sequence[Part]) -> list[Layer]:
        """Every part as a layer of the store."""
        layers = []
        for part in parts:
            blob = self._store_part(part)
            layer = Layer(MEDIA_TYPES[part.kind], blob.digest, blob.size, part.name)
            self._say_layer(layer, blob.existed)
            layers.append(layer)
        return layers

    def _store_part(self, part: Part) -> Blob:
        own = self._own_blob(part.path)
        if own is not None:
            return own
        return self._store.blobs.put_file(part.path, link=part.linkable, lease=self._lease)

    def _own_blob(self, path: Path) -> Blob | None:
        """The blob, without reading it again, when the path already is one of ours."""
        if path.parent != self._store.root / "blobs" or not path.name.startswith("sha256-"):
            return None
        digest = parse_digest(path.name)
        self._lease.add([digest])
        return Blob(digest, path.stat().st_size, True)

    async def describe(self, layers: Sequence[Layer], inspect: Inspect) -> ModelDescription:
        """What `inspect` reads from the stored files."""
        files = [self.model_file(layer) for layer in layers]
        gguf = any(file.name.endswith(".gguf") for file in files)
        self._on_progress(Progress(_FORMAT_STATUS["gguf" if gguf else "safetensors"]))
        described = inspect(files)
        if python_inspect.isawaitable(described):
            return await described
        return described

    async def quantized(self, base: Base, wanted: Quantize, inspect: Inspect) -> Base:
        """`base` with one GGUF of the wanted type for its weights; tokenizer and texts stay beside it.

        Raises InvalidModelfile for weights that are no floats, and what `wanted.write` and `inspect` raise.
        """
        stored = base.config.file_type
        if stored.upper() not in FLOAT_TYPES:
            raise InvalidModelfile(
                f"quantization is only supported for F16, BF16 and F32 models, and this one is {stored}"
            )
        files = [self.model_file(layer) for layer in base.layers if layer.kind != "adapter"]
        self._on_progress(Progress(f"quantizing {stored} model to {wanted.name}"))
        with await in_thread(self._store.blobs.writer) as writer:
            await wanted.write(files, writer.path)
            await in_thread(writer.reread)
            blob = await in_thread(writer.finish, None, self._lease)
        weights = Layer(MEDIA_TYPES["model"], blob.digest, blob.size)
        self._say_layer(weights, blob.existed)
        layers = (weights, *(layer for layer in base.layers if _stays_beside_gguf(layer)))
        description = await self.describe([each for each in layers if each.kind != "adapter"], inspect)
        config = replace(
            base.config, model_format=description.weight_format, file_type=description.quantization
        )
        return replace(base, layers=layers, config=config)

    def model_file(self, layer: Layer) -> ModelFile:
        """The stored file of a layer; raises BlobNotFound."""
        path = self._store.blobs.find(layer.digest, layer.size)
        if path is None:
            raise BlobNotFound(layer.digest)
        name = layer.name or default_file_name(layer.kind, layer.digest)
        role = "tokenizer" if name in TOKENIZER_NAMES else FILE_ROLES[layer.kind]
        return ModelFile(role, name, str(path), layer.digest, layer.size)

    def adapter_layers(
        self, modelfile: Modelfile, folder: Path | None, uploaded: Mapping[str, Digest] | None
    ) -> list[Layer]:
        """The layers of the one adapter a model may have; none without."""
        heads = [name for name in uploaded or () if name.endswith(ADAPTER_HEADS)]
        if len(heads) > 1 or len(modelfile.adapters) > 1:
            raise InvalidModelfile("only one adapter is currently supported")
        if uploaded:
            return self._adapter(self._uploaded_parts(uploaded), next(iter(uploaded)))
        for text in modelfile.adapters:
            path = (folder / Path(text).expanduser()) if folder is not None else None
            if path is None or not path.exists():
                raise InvalidModelfile(f"ADAPTER {text!r}: no such file")
            return self._adapter(parts_of_path(path), path.stem)
        return []

    async def checked(self, base: Base, adapter: Sequence[Layer], name: str, check: CheckAdapter) -> None:
        """Refuses, by the `name` it was given by, an adapter that `check` refuses."""
        weights = [self.model_file(layer) for layer in base.layers if layer.kind != "adapter"]
        try:
            await check(weights, [self.model_file(layer) for layer in adapter])
        except InvalidModelfile as error:
            raise InvalidModelfile(f"ADAPTER {name!r}: {error}") from error

    def _adapter(self, parts: Sequence[Part], group: str) -> list[Layer]:
        named = len(parts) > 1
        layers = self.store_parts([replace(part, kind="adapter") for part in parts])
        return [replace(layer, group=group if named else None) for layer in layers]

    # the Modelfile's own layers

    def write(self, target: ModelName, modelfile: Modelfile, base: Base, adapters: Sequence[Layer]) -> Model:
        """The small layers, the config and the manifest; then the model is there."""
        kept_adapters = [layer for layer in base.layers if layer.kind == "adapter" and not adapters]
        weights = [layer for layer in base.layers if layer.kind != "adapter"]
        layers = [*weights, *kept_adapters, *adapters, *self._text_layers(modelfile, base)]
        manifest = self._manifest(base_config(modelfile, base.config), layers)
        self._on_progress(Progress("writing manifest"))
        model, removed = self._store.write(target, manifest)
        if removed:
            self._on_progress(Progress("removing unused layers"))
        self._on_progress(Progress("success"))
        return model

    def write_plain(self, target: ModelName, base: Base) -> tuple[Model, int]:
        """The model without a Modelfile, as pulled; and how many blobs of an older one were removed."""
        texts = [layer for layer in base.texts if layer.kind != "params"]
        parameters = self._parameters(base, {})
        return self._store.write(target, self._manifest(base.config, [*base.layers, *texts, *parameters]))

    def _manifest(self, config: ModelConfig, layers: Sequence[Layer]) -> Manifest:
        return Manifest(self._put(config.encode(), CONFIG_TYPE), tuple(layers))

    def _parameters(self, base: Base, changes: Mapping[str, Any]) -> list[Layer]:
        merged = {**base.defaults, **self._inherited_parameters(base), **changes}
        return [self._put(msgspec.json.encode(merged), MEDIA_TYPES["params"])] if merged else []

    def _text_layers(self, modelfile: Modelfile, base: Base) -> list[Layer]:
        """Template, system, licences, parameters, messages: the Modelfile's over the base's."""
        layers = []
        for kind, text in (("template", modelfile.template), ("system", modelfile.system)):
            if text is None:
                layers += [layer for layer in base.texts if layer.kind == kind]
            elif text:
                layers.append(self._put_text(text, kind))
        if modelfile.template is None:
            layers += [layer for layer in base.texts if layer.kind == "prompt"]
        layers += [layer for layer in base.texts if layer.kind == "license"]
        layers += [self._put_text(text, "license") for text in modelfile.licenses]
        layers += self._parameters(base, modelfile.typed_parameters())
        if modelfile.messages:
            layers.append(self._put(encode_messages(modelfile.messages), MEDIA_TYPES["messages"]))
        else:
            layers += [layer for layer in base.texts if layer.kind == "messages"]
        return layers

    def _inherited_parameters(self, base: Base) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for layer in base.texts:
            if layer.kind == "params":
                merged |= msgspec.json.decode(
                    self._store.blobs.read(layer.digest, layer.size), type=dict[str, Any]
                )
        return merged

    def _put_text(self, text: str, kind: str) -> Layer:
        return self._put(text.encode(), MEDIA_TYPES[kind])

    def _put(self, data: bytes, media_type: str) -> Layer:
        blob = self._store.blobs.put_bytes(data, self._lease)
        layer = Layer(media_type, blob.digest, blob.size)
        self._say_layer(layer, blob.existed)
        return layer

    def _say_layer(self, layer: Layer, existed: bool) -> None:
        verb = "using existing layer" if existed else "creating new layer"
        self._on_progress(Progress(f"{verb} {layer.digest}"))


def _stays_beside_gguf(layer: Layer) -> bool:
    """Whether the layer still says something once the weights are one GGUF: all but weights and index."""
    return layer.kind not in ("model", "tensor") and not (layer.name or "").endswith(".index.json")


def base_config(modelfile: Modelfile, config: ModelConfig) -> ModelConfig:
    """The base's config with the Modelfile's RENDERER, PARSER and REQUIRES over it."""
    return replace(
        config,
        renderer=modelfile.renderer or config.renderer,
        parser=modelfile.parser or config.parser,
        requires=modelfile.requires or config.requires,
    )


def encode_messages(messages: Sequence[Message]) -> bytes:
    """The messages layer."""
    return msgspec.json.encode([{"role": message.role, "content": message.text} for message in messages])

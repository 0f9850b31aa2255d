"""From the name a caller wrote to everything that serving it needs, remembered as long as nothing changed.

Joins the store (names, files, what the Modelfile said) with what sandbox workers read in the files
(description, vocabulary, template). Knows no HTTP and no runner. Called by `service` and the show and list
routes.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from gateway.errors import ModelNotFound
from gateway.sandbox import Sandbox
from gateway.sandbox_calls import Describe, GetVocabulary, Inspect, Inspected, ReadContents
from gateway.settings import Alias
from modelfiles.description import IMAGE_CLASSIFIER, Contents, ModelDescription
from modelfiles.files import ModelFile
from modelfiles.messages import Message
from modelfiles.templates.source import TemplateSource
from modelfiles.vocabulary import Vocabulary
from registry import errors as registry_errors
from registry.model import Model
from registry.name import ModelName
from registry.store import Store

REMEMBERED = 64
INSPECT_SECONDS = 120.0
NO_VOCABULARY = Vocabulary((), frozenset(), (), None, False, {})
"""Of a model that reads no text."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model ready to be asked. `name` is its canonical name; `weights_digest` keys its runner.

    `engine` is "decoder", or "classifier" for images, but for the tests' scripted engine.
    """

    name: str
    digest: str
    weights_digest: str
    files: tuple[ModelFile, ...]
    description: ModelDescription
    vocabulary: Vocabulary
    template: TemplateSource
    capabilities: tuple[str, ...]
    convention: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    messages: tuple[Message, ...] = ()
    adapters: tuple[tuple[ModelFile, ...], ...] = ()
    modified_at: datetime | None = None
    engine: str = "decoder"
    model: Model | None = None


class Catalog:
    """Finds models. `built_in` holds models that are in no store (the tests' scripted one)."""

    def __init__(
        self,
        store: Store,
        sandbox: Sandbox,
        aliases: Iterable[Alias] = (),
        built_in: Mapping[str, ServedModel] | None = None,
    ) -> None:
        self.store = store
        self._sandbox = sandbox
        self._aliases = tuple(aliases)
        self._built_in = dict(built_in or {})
        self._served: OrderedDict[tuple[str, str], ServedModel] = OrderedDict()
        self._weights: OrderedDict[str, asyncio.Task[tuple[ModelDescription, Vocabulary]]] = OrderedDict()

    def resolve(self, name: str) -> str:
        """The name an alias stands for; the name itself when there is a model of it or no alias fits."""
        if self._exists(name):
            return name
        lowered = name.lower()
        for alias in self._aliases:
            if fnmatch.fnmatchcase(lowered, alias.pattern.lower()):
                return alias.target
        return name

    def _exists(self, name: str) -> bool:
        if name in self._built_in:
            return True
        try:
            self.store.entry(name)
        except registry_errors.RegistryError:
            return False
        return True

    async def get(self, name: str) -> ServedModel:
        """The model that `name` means. Raises `ModelNotFound`, or what its files made a worker refuse."""
        wanted = self.resolve(name)
        if wanted in self._built_in:
            return self._built_in[wanted]
        try:
            entry = self.store.entry(ModelName.parse(wanted))
        except registry_errors.InvalidName:
            raise ModelNotFound(name, well_formed=False) from None
        except registry_errors.ModelNotFound:
            raise ModelNotFound(name) from None
        key = (str(entry.path), entry.digest)
        if key in self._served:
            self._served.move_to_end(key)
            return self._served[key]
        model = await asyncio.to_thread(self.store.get, entry.name)
        self._served[key] = await self._serve(model)
        while len(self._served) > REMEMBERED:
            self._served.popitem(last=False)
        return self._served[key]

    def built_in(self) -> list[ServedModel]:
        """Models in no store."""
        return list({id(model): model for model in self._built_in.values()}.values())

    async def list(self) -> list[Model]:
        """The models of all stores, newest first."""
        return await asyncio.to_thread(self.store.list)

    async def describe(self, model: Model) -> ModelDescription:
        """What the weights of `model` say about themselves."""
        return (await self._read_weights(model))[0]

    async def contents(self, served: ServedModel) -> Contents:
        """All that the headers of its weight files say; read anew each time: a vocabulary is megabytes."""
        return await self._sandbox.call(ReadContents(served.files), Contents, INSPECT_SECONDS)

    async def _serve(self, model: Model) -> ServedModel:
        description, vocabulary = await self._read_weights(model)
        classifies = description.architecture == IMAGE_CLASSIFIER
        found = await self._sandbox.call(
            Inspect(
                description,
                model.template,
                vocabulary.names,
                model.config.renderer,
                model.config.parser,
            ),
            Inspected,
        )
        return ServedModel(
            name=model.name.display(),
            digest=model.digest,
            weights_digest=model.weights_digest,
            files=model.files,
            description=description,
            vocabulary=vocabulary,
            template=found.template,
            capabilities=found.capabilities,
            convention=found.convention,
            parameters=model.parameters,
            system=model.system,
            messages=model.messages,
            adapters=model.adapters,
            modified_at=model.modified_at,
            engine="classifier" if classifies else "decoder",
            model=model,
        )

    async def _read_weights(self, model: Model) -> tuple[ModelDescription, Vocabulary]:
        """Description and vocabulary of a set of files, read once however many ask at the same time."""
        key = model.weights_digest
        task = self._weights.get(key)
        if task is None:
            task = self._weights[key] = asyncio.ensure_future(self._inspect(model))
            while len(self._weights) > REMEMBERED:
                self._weights.popitem(last=False)
        self._weights.move_to_end(key)
        try:
            return await asyncio.shield(task)
        except Exception:
            self._weights.pop(key, None)
            raise

    async def _inspect(self, model: Model) -> tuple[ModelDescription, Vocabulary]:
        description = await self._sandbox.call(Describe(model.files), ModelDescription, INSPECT_SECONDS)
        if description.architecture == IMAGE_CLASSIFIER:
            return description, NO_VOCABULARY
        question = GetVocabulary(model.files, model.weights_digest)
        return description, await self._sandbox.call(question, Vocabulary, INSPECT_SECONDS)


__all__ = ["Catalog", "ServedModel", "replace"]

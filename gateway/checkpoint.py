"""Makes a model of the folder that MODEL_CHECKPOINT names when the server starts, as Gemma servers took it.

Knows the store and the sandbox, not HTTP. Called once by `gateway`; what fails is logged, the server goes on.
"""

from __future__ import annotations

import logging
from pathlib import Path

from modelfiles.modelfile import Modelfile
from registry.create import Inspect, ModelBuilder, fresh_base
from registry.errors import RegistryError
from registry.name import ModelName
from registry.sources.local import parts_of_path
from registry.store import Store
from registry.threads import in_thread

logger = logging.getLogger(__name__)


async def make_model(store: Store, checkpoint: Path, tokenizer: Path | None, inspect: Inspect) -> None:
    """Makes the model, named as the folder, unless the store has one of that name."""
    try:
        name = ModelName.parse(checkpoint.name)
        if any(model.name == name for model in await in_thread(store.list)):
            logger.info("%s is in the store already; the checkpoint is not read again", name.display())
            return
        await _make(store, name, checkpoint, tokenizer, inspect)
    except (RegistryError, OSError, ValueError) as error:
        logger.error("cannot make a model of the checkpoint %s: %s", checkpoint, error)
    else:
        logger.info("made %s of the checkpoint %s", name.display(), checkpoint)


async def _make(
    store: Store, name: ModelName, checkpoint: Path, tokenizer: Path | None, inspect: Inspect
) -> None:
    with await in_thread(store.lease_empty) as lease:
        job = ModelBuilder(store, lease)
        parts = await in_thread(parts_of_path, checkpoint, tokenizer)
        layers = await in_thread(job.store_parts, parts)
        base = fresh_base(layers, await job.describe(layers, inspect))
        await in_thread(job.write, name, Modelfile(base=str(checkpoint)), base, ())

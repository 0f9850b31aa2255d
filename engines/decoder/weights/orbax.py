"""Orbax checkpoints of Gemma's Flax trees, as Kaggle ships them. Imports orbax-checkpoint only when used."""

from __future__ import annotations

from collections.abc import Sequence

from engines.decoder.weights import WeightsError
from engines.decoder.weights.headers import Headers
from modelfiles.files import ModelFile


def recognises(files: Sequence[ModelFile]) -> bool:
    """An Orbax folder has an index (`checkpoint`, `_METADATA`) or an OCDBT manifest."""
    names = {file.name.rpartition("/")[2] for file in files}
    return bool(names & {"_METADATA", "manifest.ocdbt", "checkpoint", "_CHECKPOINT_METADATA"})


def read(files: Sequence[ModelFile]) -> Headers:
    """Configuration and tensor table of an Orbax checkpoint. Raises as `read_headers`."""
    raise WeightsError("Orbax checkpoints cannot be loaded yet")

"""What a runner is told to load, and which models share one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.errors import LoadError
from gateway.planning import adapter_name, adapters_of, runner_key
from modelfiles.files import ModelFile
from tests.gateway.scripted_model import scripted_model


def adapter(weights: str) -> tuple[ModelFile, ...]:
    """Two files, of which the first is the same for every adapter."""
    return (
        ModelFile("adapter", "adapter_config.json", "/x", "sha256:" + "c" * 64, 10),
        ModelFile("adapter", "adapter_model.safetensors", "/y", "sha256:" + weights * 64, 1000),
    )


def test_models_share_a_runner_when_weights_and_adapters_are_the_same(tmp_path: Path) -> None:
    base = scripted_model(tmp_path)
    one, other = replace(base, adapters=(adapter("1"),)), replace(base, adapters=(adapter("2"),))
    renamed = replace(one, name="else", adapters=(adapter("1")[::-1],))
    assert len({runner_key(model) for model in (base, one, other)}) == 3
    assert runner_key(renamed) == runner_key(one)
    assert runner_key(base) == base.weights_digest


def test_a_request_names_the_adapter_that_was_loaded(tmp_path: Path) -> None:
    base = scripted_model(tmp_path)
    assert adapter_name(base) is None
    one = replace(base, adapters=(adapter("1"),))
    assert [adapter_name(one)] == [loaded.name for loaded in adapters_of(one)]
    with pytest.raises(LoadError, match="2 adapters"):
        adapter_name(replace(one, adapters=(adapter("1"), adapter("2"))))

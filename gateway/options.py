"""Whose word counts: the caller's over the model's PARAMETERs over its files' defaults over Ollama's.

Pure. Called by `service` for every request, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engines.base import SamplingParams
from gateway.errors import BadRequest
from gateway.types import GenerationOptions, ResolvedOptions

DEFAULTS: dict[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": (),
    "seed": None,
}
UNLIMITED = -1


def resolve(
    options: GenerationOptions, parameters: Mapping[str, Any], defaults: Mapping[str, Any]
) -> ResolvedOptions:
    """The settings of one request; `defaults` come from the weights' own files (generation_config.json)."""
    layers = (parameters, defaults, DEFAULTS)
    values = {}
    for name in DEFAULTS:
        said = getattr(options.sampling, name)
        values[name] = said if said is not None else _first(name, layers)
    values["logit_bias"] = tuple(values["logit_bias"])
    if values["seed"] is not None and values["seed"] < 0:
        values["seed"] = None  # Ollama's way to ask for a random one
    num_predict = options.num_predict
    if num_predict is None:
        num_predict = _first("num_predict", (parameters, {"num_predict": UNLIMITED}))
    stop = options.stop if options.stop is not None else _stops(parameters.get("stop", ()))
    return ResolvedOptions(SamplingParams(**values), int(num_predict), stop)


def max_tokens(num_predict: int, room: int) -> int:
    """How many tokens may be generated when `room` are left in the context; negative wishes are unlimited."""
    return room if num_predict < 0 else min(num_predict, room)


def check_biases(biases: Iterable[tuple[int, float]], vocabulary_size: int) -> None:
    """Refuses ids the model does not have: they would reach past the end of an array in the engine."""
    for token_id, _ in biases:
        if not 0 <= token_id < vocabulary_size:
            raise BadRequest(
                f"logit_bias: token id {token_id} is not in the vocabulary of {vocabulary_size} tokens",
                param="logit_bias",
            )


def _first(name: str, layers: Iterable[Mapping[str, Any]]) -> Any:
    return next((layer[name] for layer in layers if layer.get(name) is not None), None)


def _stops(given: Any) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(str(stop) for stop in given)

"""Ollama's `options` object to canonical settings: names, types and the values that mean "unset".

Pure functions over one table. Unknown names are ignored, as Ollama does; a wrong type is a BadRequest
(Ollama answers 500). Called by convert.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gateway.errors import BadRequest
from gateway.types import GenerationOptions, SamplingOverrides

SAMPLING = {field.name for field in dataclasses.fields(SamplingOverrides)} - {"logit_bias", "seed"}
INTEGERS = {
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "num_keep",
    "num_predict",
    "seed",
    "top_k",
    "repeat_last_n",
}
FLOATS = {
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
}
BOOLEANS = {"use_mmap"}


def generation_options(
    options: Mapping[str, Any],
    *,
    logprobs: int = -1,
    keep_alive: float | None = None,
    truncate: bool = False,
    shift: bool = False,
) -> GenerationOptions:
    """Canonical settings of a native request. Raises BadRequest naming option, type and value."""
    values = {name: _check(name, value) for name, value in options.items() if value is not None}
    if values.get("n", 1) != 1:
        raise BadRequest(f"n is {values['n']}, but a reply here holds one answer; use /v1/chat/completions")
    return GenerationOptions(
        sampling=_sampling(values),
        num_predict=values.get("num_predict"),
        stop=tuple(values["stop"]) if "stop" in values else None,
        logprobs=logprobs,
        num_ctx=values.get("num_ctx") or None,
        keep_alive=keep_alive,
        truncate=truncate,
        shift=shift,
    )


def _sampling(values: Mapping[str, Any]) -> SamplingOverrides:
    chosen = {name: values[name] for name in SAMPLING if name in values}
    seed = values.get("seed")
    return SamplingOverrides(
        **chosen,
        seed=None if seed is None or seed < 0 else seed,
        logit_bias=values.get("logit_bias"),
    )


def _check(name: str, value: Any) -> Any:
    if name in INTEGERS:
        return _integer(name, value)
    if name in FLOATS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(name, "float32", value)
        return float(value)
    if name in BOOLEANS and not isinstance(value, bool):
        raise _wrong(name, "bool", value)
    if name == "stop":
        return _stop(value)
    if name == "logit_bias":
        return _logit_bias(value)
    return value


def _integer(name: str, value: Any) -> int:
    """A whole number; 3.0 counts, since JavaScript and Lua clients cannot tell it from 3."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise _wrong(name, "integer", value)
    return value


def _stop(value: Any) -> list[str]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
        raise _wrong("stop", "list of strings", value)
    return [text for text in strings if text]


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, Mapping):
        raise _wrong("logit_bias", "object of token id to number", value)
    pairs = []
    for token, bias in value.items():
        if not token.isdecimal() or isinstance(bias, bool) or not isinstance(bias, int | float):
            raise _wrong("logit_bias", "object of token id to number", {token: bias})
        pairs.append((int(token), float(bias)))
    return tuple(pairs)


def _wrong(name: str, kind: str, value: Any) -> BadRequest:
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    return BadRequest(f'option "{name}" must be of type {kind}, not {shown}')

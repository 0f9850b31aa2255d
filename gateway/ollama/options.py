"""Ollama's `options` object to canonical settings: names, types and the values that mean "unset".

Pure. Types are those of `modelfiles.parameters`. Unknown names are ignored, as Ollama does; a wrong type is a
BadRequest (Ollama answers 500). Called by convert and by create.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gateway.errors import BadRequest
from gateway.types import GenerationOptions, SamplingOverrides
from modelfiles.parameters import ParameterError, UnknownParameter, check_option

SAMPLING = {field.name for field in dataclasses.fields(SamplingOverrides)} - {"logit_bias", "seed"}


def generation_options(
    options: Mapping[str, Any],
    *,
    logprobs: int = -1,
    keep_alive: float | None = None,
    truncate: bool = False,
    shift: bool = False,
    script: str | None = None,
) -> GenerationOptions:
    """Canonical settings of a native request. Raises BadRequest naming option, type and value."""
    values = checked(options)
    if options.get("n") not in (None, 1):
        raise BadRequest(f"n is {options['n']}, but a reply here holds one answer; use /v1/chat/completions")
    seed = values.get("seed")
    sampling = SamplingOverrides(
        **{name: values[name] for name in SAMPLING if name in values},
        seed=None if seed is None or seed < 0 else seed,
        logit_bias=_logit_bias(options.get("logit_bias")),
    )
    return GenerationOptions(
        sampling=sampling,
        num_predict=values.get("num_predict"),
        stop=tuple(text for text in values["stop"] if text) if "stop" in values else None,
        num_ctx=values.get("num_ctx") or None,
        logprobs=logprobs,
        keep_alive=keep_alive,
        truncate=truncate,
        shift=shift,
        script=script or options.get("script"),
    )


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The known options in their types; null and unknown ones are left out. Raises BadRequest."""
    values = {}
    for name, given in options.items():
        value = [given] if name == "stop" and isinstance(given, str) else given
        try:
            found = check_option(name, value)
        except UnknownParameter:
            continue
        except ParameterError as error:
            raise BadRequest(str(error), param=f"options.{name}") from None
        if found is not None:
            values[name] = found
    return values


def parameter_lines(parameters: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """PARAMETER lines, names and texts, that read back as these typed values."""
    lines = []
    for name, value in parameters.items():
        items = value if isinstance(value, list | tuple) else [value]
        lines += [(name, _written(item)) for item in items]
    return tuple(lines)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...] | None:
    """OpenAI's form, which Ollama lacks: token ids as text, biases as numbers."""
    if value is None:
        return None
    fault = BadRequest(
        'option "logit_bias" must be an object of token ids and numbers', param="options.logit_bias"
    )
    if not isinstance(value, Mapping):
        raise fault
    pairs = []
    for token, bias in value.items():
        if (
            not (token.isascii() and token.isdecimal())
            or isinstance(bias, bool)
            or not isinstance(bias, int | float)
        ):
            raise fault
        pairs.append((int(token), float(bias)))
    return tuple(pairs)

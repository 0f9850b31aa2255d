"""OpenAI bodies to canonical requests. Pure; no model is looked up. Called by the routes of this dialect.

Raises `BadRequest` with `param` for everything that can be refused without knowing the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from gateway.duration import parse_duration
from gateway.errors import BadRequest, UnsupportedParameter
from gateway.openai.formats import grammar
from gateway.openai.messages import messages
from gateway.openai.schema import ChatBody, CompletionBody, SamplingBody
from gateway.openai.tools import checked_choice, function_spec, legacy_choice, tool_choice, tool_spec
from gateway.types import (
    ChatRequest,
    CompletionRequest,
    GenerationOptions,
    SamplingOverrides,
)

EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}


def chat_request(body: ChatBody) -> ChatRequest:
    """The canonical form of POST /v1/chat/completions."""
    _refuse(body)
    tools = [tool_spec(tool, index) for index, tool in enumerate(body.tools or [])]
    tools += [function_spec(function) for function in body.functions or []]
    choice = (
        tool_choice(body.tool_choice) if body.tool_choice is not None else legacy_choice(body.function_call)
    )
    return ChatRequest(
        model=body.model,
        messages=messages(body.messages),
        tools=tuple(tools),
        tool_choice=checked_choice(choice, tools),
        parallel_tool_calls=body.parallel_tool_calls is not False and not body.functions,
        format=grammar(body),
        think=_think(body),
        options=options(body, body.max_completion_tokens or body.max_tokens, _chat_logprobs(body)),
        template_kwargs=body.chat_template_kwargs or {},
    )


def completion_requests(body: CompletionBody) -> list[CompletionRequest]:
    """The canonical forms of POST /v1/completions, one for each prompt."""
    prompts = list(_prompts(body.prompt))
    if len(prompts) > 128:
        raise BadRequest(f"prompt: {len(prompts)} prompts in one request; the limit is 128", param="prompt")
    logprobs = -1 if body.logprobs is None else body.logprobs
    count = chosen_from(body)
    limit = 16 if body.max_tokens is None else body.max_tokens
    return [
        CompletionRequest(
            model=body.model,
            prompt=prompt,
            raw=True,
            suffix=body.suffix or None,
            format=grammar(body),
            echo=bool(body.echo),
            options=replace(
                options(body, limit, logprobs, zero_allowed=bool(body.echo)),
                n=count,
                logprobs=max(logprobs, 0) if count > (body.n or 1) else logprobs,
            ),
        )
        for prompt in prompts
    ]


def chosen_from(body: CompletionBody) -> int:
    """How many choices to generate for each prompt: `best_of`, of which `n` are kept."""
    n, best_of = body.n or 1, body.best_of or body.n or 1
    if best_of < n:
        raise BadRequest(f"best_of is {best_of}, less than n, which is {n}", param="best_of")
    if best_of > n and body.stream:
        raise BadRequest("best_of cannot be streamed: all choices must be complete", param="best_of")
    return best_of


def options(
    body: SamplingBody, max_tokens: int | None, logprobs: int, zero_allowed: bool = False
) -> GenerationOptions:
    """Everything about how to generate; what the caller did not say stays None, for the model to decide.

    `options`, in Ollama's names, is the weaker word: a field of its own overrides it.
    """
    if max_tokens == 0 and not zero_allowed:
        raise BadRequest("max_tokens must be at least 1", param="max_tokens")
    given = _inner_options(body.options)
    repeat = body.repeat_penalty if body.repeat_penalty is not None else body.repetition_penalty
    said = SamplingOverrides(
        temperature=body.temperature,
        top_k=None if body.top_k is None else max(0, body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        typical_p=body.typical_p,
        repeat_penalty=repeat,
        repeat_last_n=body.repeat_last_n,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_biases(body.logit_bias),
        seed=body.seed,
    )
    return GenerationOptions(
        sampling=_over(said, given.sampling),
        num_predict=given.num_predict if max_tokens is None else max_tokens,
        stop=_stops(body.stop) if body.stop is not None else given.stop,
        n=body.n or 1,
        logprobs=logprobs,
        num_ctx=body.num_ctx or given.num_ctx,
        keep_alive=keep_alive(body.keep_alive),
        ignore_eos=bool(body.ignore_eos),
        cache_salt=body.cache_salt or "",
        script=body.script,
    )


def _inner_options(given: dict[str, Any] | None) -> GenerationOptions:
    """Ollama's `options`, read by that dialect's own table."""
    if not given:
        return GenerationOptions()
    from gateway.ollama.options import generation_options

    return generation_options(given)


def _over(said: SamplingOverrides, weaker: SamplingOverrides) -> SamplingOverrides:
    names = SamplingOverrides.__dataclass_fields__
    return SamplingOverrides(
        **{
            name: getattr(weaker, name) if getattr(said, name) is None else getattr(said, name)
            for name in names
        }
    )


def keep_alive(given: float | str | None) -> float | None:
    """Seconds; negative for ever; None and "" for the default."""
    if given is None or given == "":
        return None
    try:
        return float(given) if not isinstance(given, str) else parse_duration(given)
    except ValueError as fault:
        raise BadRequest(f"keep_alive: {fault}", param="keep_alive") from None


def _think(body: ChatBody) -> bool | str | None:
    if body.think is not None:
        return body.think
    effort = body.reasoning_effort or (body.reasoning.effort if body.reasoning else None)
    if effort is None:
        return body.reasoning.enabled if body.reasoning else None
    if effort not in EFFORTS:
        raise BadRequest(
            f"reasoning_effort is {effort[:64]!r}; it can be {', '.join(EFFORTS)}", param="reasoning_effort"
        )
    return EFFORTS[effort]


def _chat_logprobs(body: ChatBody) -> int:
    if not body.logprobs:
        if body.top_logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        return -1
    return body.top_logprobs or 0


def _biases(given: Mapping[str, float] | None) -> tuple[tuple[int, float], ...] | None:
    if given is None:
        return None
    for key in given:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise BadRequest(f"logit_bias: {key[:32]!r} is no token id", param="logit_bias")
    return tuple((int(key), float(bias)) for key, bias in given.items())


def _stops(given: str | list[str]) -> tuple[str, ...]:
    return tuple(stop for stop in ([given] if isinstance(given, str) else given) if stop)


def _prompts(given: object) -> Iterable[str | tuple[int, ...]]:
    if given is None:
        return [""]
    if isinstance(given, str):
        return [given]
    assert isinstance(given, list)
    if not given:
        raise BadRequest("prompt is empty", param="prompt")
    if isinstance(given[0], int):
        return [tuple(given)]
    return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in given]


def _refuse(body: ChatBody) -> None:
    """Known fields that cannot be obeyed and must not be ignored either."""
    if body.modalities and set(body.modalities) != {"text"}:
        raise UnsupportedParameter(
            f"{body.model} answers in text only; modalities must be ['text']", param="modalities"
        )
    if body.audio is not None:
        raise UnsupportedParameter(f"{body.model} answers in text only; leave audio out", param="audio")
    if body.web_search_options is not None:
        raise UnsupportedParameter(
            "nothing here searches the web; leave web_search_options out", param="web_search_options"
        )
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options needs stream: true", param="stream_options")

"""Requests as the programs want them: checked against limits, settings as arrays, results as values.

Pure functions and one record; knows no device state and no scheduling. Called by the decoder's engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engines.base import GenerateRequest, InvalidRequest, SamplingParams, TokenLogprob
from engines.decoder.config import DecoderConfig
from engines.decoder.plan import SampleMode
from engines.decoder.programs import neutral_settings
from engines.decoder.sampling import MAX_BIAS, TOP_LOGPROBS, Logprobs, Settings
from engines.grammar import Matcher


@dataclass(slots=True, eq=False)
class Active:
    """A request between submission and its last output."""

    serial: int
    request: GenerateRequest
    matcher: Matcher | None
    seed: int
    submitted: float
    stop_ids: frozenset[int]
    started: float | None = None
    first_token: float | None = None
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)

    @property
    def wants_logprobs(self) -> bool:
        return self.request.top_logprobs >= 0


def check_request(request: GenerateRequest, config: DecoderConfig) -> None:
    """Raises `InvalidRequest` for what no program can run; the limits are named."""
    size = config.vocabulary_size
    check_tokens(request.prompt_token_ids, size)
    if config.bidirectional:
        raise InvalidRequest("this model embeds only; it does not generate text")
    if request.max_tokens < 0:
        raise InvalidRequest("max_tokens is negative; give 0 or more")
    if request.attachments:
        raise InvalidRequest("this model takes no images or sounds")
    if request.top_logprobs > TOP_LOGPROBS:
        raise InvalidRequest(
            f"at most {TOP_LOGPROBS} log-probabilities per token, not {request.top_logprobs}"
        )
    bias = request.sampling.logit_bias
    if len(bias) > MAX_BIAS:
        raise InvalidRequest(f"logit_bias has {len(bias)} entries; at most {MAX_BIAS} are possible")
    if any(not 0 <= token < size for token, _ in bias):
        raise InvalidRequest(f"logit_bias names a token outside the vocabulary of {size}")
    _check_sampling(request.sampling)


def check_tokens(token_ids: Sequence[int], vocabulary_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocabulary_size):
        raise InvalidRequest(f"a token of the prompt is outside the vocabulary of {vocabulary_size}")


BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repeat_penalty": (1e-3, 1e3),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
}
"""Smallest and largest useful value of each sampling setting."""


def _check_sampling(params: SamplingParams) -> None:
    for name, (low, high) in BOUNDS.items():
        value = getattr(params, name)
        if not low <= value <= high:  # also refuses NaN
            raise InvalidRequest(f"{name} is {value}; it must be between {low:g} and {high:g}")


def sample_mode(request: GenerateRequest) -> SampleMode:
    """Whether plain argmax gives this request's tokens."""
    params = request.sampling
    plain = SamplingParams(
        temperature=0.0,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        typical_p=params.typical_p,
        repeat_last_n=params.repeat_last_n,
        seed=params.seed,
    )
    return "greedy" if params == plain and request.grammar is None and request.top_logprobs < 0 else "general"


def settings_arrays(active: Sequence[Active | None], rows: int, vocabulary_size: int) -> Settings:
    """Host arrays for a group; rows of requests that ended meanwhile, and padding, are greedy."""
    settings = neutral_settings(rows, vocabulary_size)
    for row, one in enumerate(active):
        if one is None:
            continue
        params = one.request.sampling
        for name in (*BOUNDS, "top_k", "repeat_last_n"):
            getattr(settings, name)[row] = min(max(getattr(params, name), -(2**31)), 2**31 - 1)
        settings.generated_from[row] = len(one.request.prompt_token_ids)
        settings.seed[row] = one.seed >> 32 & 0xFFFFFFFF, one.seed & 0xFFFFFFFF
        settings.masked[row] = one.matcher is not None
        settings.logprobs[row] = one.wants_logprobs
        for i, (token, value) in enumerate(params.logit_bias):
            settings.bias_ids[row, i], settings.bias_values[row, i] = token, value
    return settings


def token_logprob(active: Active, logprobs: Logprobs | None, row: int, token: int) -> TokenLogprob | None:
    if logprobs is None or not active.wants_logprobs:
        return None
    return logprob_entry(logprobs, row, token, active.request.top_logprobs)


def logprob_entry(logprobs: Logprobs, row: int, token: int, count: int) -> TokenLogprob:
    ids, values = logprobs.top_ids[row, :count].tolist(), logprobs.top[row, :count].tolist()
    return TokenLogprob(token, float(logprobs.chosen[row]), tuple(zip(ids, values, strict=True)))

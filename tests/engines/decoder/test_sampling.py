"""Sampling against a plain numpy reading of the same filters, and against its own promises."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engines.decoder import sampling
from engines.decoder.sampling import BAD_LOGITS, MAX_BIAS, NOTHING_ALLOWED, OK, Settings

CONTEXT = 300


@dataclass(frozen=True)
class Row:
    """One row's settings by their names in Settings."""

    def __str__(self) -> str:
        changed = [f"{each.name}={getattr(self, each.name)}" for each in fields(self)]
        return ",".join(
            text
            for text, each in zip(changed, fields(self), strict=True)
            if getattr(self, each.name) != each.default
        )

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    generated_from: int = 0
    seed: int = 0
    bias: tuple[tuple[int, float], ...] = ()
    masked: bool = False
    logprobs: bool = False


def settings_of(rows: list[Row], size: int) -> Settings:
    def column(name: str, kind: Any) -> jax.Array:
        return jnp.array([getattr(row, name) for row in rows], kind)

    ids = np.full((len(rows), MAX_BIAS), size, np.int32)
    values = np.zeros((len(rows), MAX_BIAS), np.float32)
    for i, row in enumerate(rows):
        for j, (token, bias) in enumerate(row.bias):
            ids[i, j], values[i, j] = token, bias
    names = {"top_k": jnp.int32, "repeat_last_n": jnp.int32, "generated_from": jnp.int32}
    floats = ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty")
    floats += ("presence_penalty", "frequency_penalty")
    return Settings(
        **{name: column(name, jnp.float32) for name in floats},
        **{name: column(name, kind) for name, kind in names.items()},
        seed=jnp.array([[0, row.seed] for row in rows], jnp.uint32),
        bias_ids=jnp.array(ids),
        bias_values=jnp.array(values),
        masked=column("masked", bool),
        logprobs=column("logprobs", bool),
    )


_draw = jax.jit(sampling.draw)


def draw(
    logits: np.ndarray,
    rows: list[Row],
    positions: list[int] | None = None,
    history: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> sampling.Drawn:
    """Pads to a few batch sizes, as the programs do: each size compiles once."""
    count, size = logits.shape
    padded = next(bucket for bucket in (1, 4, 20, 256) if bucket >= count)

    def pad(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.zeros((padded - count, *array.shape[1:]), array.dtype)])

    mask = np.zeros((count, -(-size // 32)), np.uint32) if mask is None else mask
    history = np.zeros((count, CONTEXT), np.int32) if history is None else history
    at = np.array(positions or [5] * count, np.int32)
    settings = settings_of([*rows, *[Row(temperature=0)] * (padded - count)], size)
    drawn = _draw(pad(logits.astype(np.float32)), settings, pad(mask), pad(history), pad(at))
    return sampling.Drawn(drawn.token_ids[:count], drawn.status[:count])


def random_logits(size: int, seed: int, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def kept_by(logits: np.ndarray, row: Row) -> np.ndarray:
    """The filters one after the other by sorting, in float64: probabilities after renormalising, [V]."""
    scaled = logits.astype(np.float64) / row.temperature
    weights = np.exp(scaled - scaled.max())

    def keep(chosen: np.ndarray) -> None:
        weights[np.setdiff1d(np.arange(len(weights)), chosen)] = 0

    if 0 < row.top_k < len(weights):
        keep(np.argsort(-weights, kind="stable")[: row.top_k])
    if row.typical_p < 1:
        shares = weights / weights.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise = np.where(shares > 0, -np.log(shares), 0)
        distance = np.where(shares > 0, abs(surprise - (shares * surprise).sum()), np.inf)
        keep(shortest_reaching(np.argsort(distance, kind="stable"), shares, row.typical_p))
    if row.top_p < 1:
        shares = weights / weights.sum()
        keep(shortest_reaching(np.argsort(-shares, kind="stable"), shares, row.top_p))
    keep(np.nonzero(weights >= row.min_p * weights.max())[0])
    return weights / weights.sum()


def shortest_reaching(order: np.ndarray, shares: np.ndarray, goal: float) -> np.ndarray:
    return order[: int(np.searchsorted(np.cumsum(shares[order]), goal)) + 1]


FILTERS = [
    Row(),
    Row(temperature=0.3),
    Row(temperature=1.7, top_k=5),
    Row(top_k=64, top_p=0.95),
    Row(top_k=1),
    Row(top_p=0.5),
    Row(top_p=0.95),
    Row(top_p=1e-6),
    Row(min_p=0.05),
    Row(min_p=0.0001),
    Row(top_p=0.99, min_p=0.02, temperature=2.0),
    Row(typical_p=0.3),
    Row(typical_p=0.9, top_p=0.8),
    Row(top_k=300),
    Row(top_k=300, top_p=0.9, min_p=0.001),
    Row(top_k=40, typical_p=0.5, top_p=0.9, min_p=0.05, temperature=0.8),
    Row(temperature=5.0, top_p=0.999),
]


@pytest.mark.parametrize("size", [50, pytest.param(20_000, marks=pytest.mark.slow)])
def test_the_filters_keep_what_sorting_keeps(size: int) -> None:
    """Compared as sets, through the share of draws; ties and the last float at a border aside."""
    for seed in range(3):
        logits = random_logits(size, seed)
        rows = [replace(row) for row in FILTERS]
        scaled = np.stack([logits / row.temperature - (logits / row.temperature).max() for row in rows])
        kept = np.asarray(jax.jit(sampling.keep_all)(jnp.array(scaled), settings_of(rows, size)))
        for row, mine in zip(rows, kept, strict=True):
            expected = kept_by(logits, row) > 0
            assert abs(int(mine.sum()) - int(expected.sum())) <= 1, row
            assert (mine != expected).sum() <= 1, row


@pytest.mark.slow
@pytest.mark.parametrize("row", FILTERS, ids=str)
@pytest.mark.parametrize("size", [50, 20_000])
def test_draws_follow_the_distribution(row: Row, size: int) -> None:
    """Chi-square over the likeliest tokens; 256 rows of other seeds at many positions in one batch."""
    logits = random_logits(size, 1, spread=1.0 if size == 50 else 2.0)
    expected = kept_by(logits, row)
    many = np.broadcast_to(logits, (256, size))
    counts = np.zeros(size)
    for position in range(8):
        rows = [replace(row, seed=seed) for seed in range(256)]
        drawn = draw(many, rows, [position] * 256)
        assert (np.asarray(drawn.status) == OK).all()
        counts += np.bincount(np.asarray(drawn.token_ids), minlength=size)
    assert counts[expected == 0].sum() <= 2  # a token at a filter's border may fall to either side
    total = counts.sum()
    order = np.argsort(-expected)[:30]
    cells = np.append(expected[order], 1 - expected[order].sum())
    seen = np.append(counts[order], total - counts[order].sum())
    big = cells * total >= 5
    statistic = (((seen - cells * total) ** 2)[big] / (cells * total)[big]).sum()
    degrees = max(int(big.sum()) - 1, 1)
    assert statistic < degrees + 5 * np.sqrt(2 * degrees) + 5


@pytest.mark.slow
def test_the_candidates_and_the_whole_vocabulary_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many candidates as tokens nothing is ever left to the long way: both must draw the same."""
    size = 500
    logits = np.stack([random_logits(size, seed, 2.5) for seed in range(len(FILTERS))])
    rows = [replace(row, seed=i) for i, row in enumerate(FILTERS)]
    with_short = np.asarray(draw(logits, rows).token_ids)
    monkeypatch.setattr(sampling, "CANDIDATES", size)
    long_way = jax.jit(lambda *args: sampling.draw(*args))
    mask = np.zeros((len(rows), -(-size // 32)), np.uint32)
    history = np.zeros((len(rows), CONTEXT), np.int32)
    alone = long_way(
        jnp.array(logits), settings_of(rows, size), mask, history, jnp.full(len(rows), 5, jnp.int32)
    )
    different = with_short != np.asarray(alone.token_ids)
    # Tokens outside the 128 candidates are ordered by id, not likelihood, so only those may differ.
    ranks = (-logits).argsort(-1).argsort(-1)
    assert all(ranks[i, with_short[i]] >= 128 for i in np.nonzero(different)[0])


@pytest.mark.slow
def test_greedy_takes_the_first_of_equals_in_every_path() -> None:
    logits = np.zeros((4, 500), np.float32)
    logits[:, [7, 400, 499]] = 5.0
    assert np.asarray(sampling.greedy(jnp.array(logits)).token_ids).tolist() == [7, 7, 7, 7]
    rows = [Row(temperature=0), Row(temperature=1.0), Row(temperature=0, top_k=3), Row()]
    drawn = np.asarray(draw(logits, rows).token_ids)
    assert drawn[0] == drawn[2] == 7


@pytest.mark.slow
def test_a_token_depends_on_its_own_row_alone() -> None:
    size = 500
    logits = np.stack([random_logits(size, seed) for seed in range(len(FILTERS))])
    rows = [replace(row, seed=100 + i) for i, row in enumerate(FILTERS)]
    together = np.asarray(draw(logits, rows).token_ids)
    for i in (0, 3, 6, 11, 13, 15):
        for mates in ([i], [i, 0], [11, i, 13, 5]):
            alone = np.asarray(draw(logits[mates], [rows[j] for j in mates]).token_ids)
            assert alone[mates.index(i)] == together[i], rows[i]


def test_seed_and_position_choose_the_number_drawn() -> None:
    logits = np.stack([random_logits(500, 1, 0.1)] * 4)
    rows = [Row(seed=1), Row(seed=1), Row(seed=2), Row(seed=1)]
    first = np.asarray(draw(logits, rows, [5, 5, 5, 6]).token_ids)
    assert first[0] == first[1]
    assert len({int(first[0]), int(first[2]), int(first[3])}) == 3


def penalized(logits: np.ndarray, row: Row, history: list[int]) -> np.ndarray:
    result = logits.astype(np.float64).copy()
    recent = (
        history if row.repeat_last_n < 0 else history[len(history) - min(row.repeat_last_n, len(history)) :]
    )
    for token in set(recent):
        value = result[token]
        result[token] = value / row.repeat_penalty if value > 0 else value * row.repeat_penalty
    generated = history[row.generated_from :]
    for token in set(generated):
        result[token] -= row.presence_penalty + row.frequency_penalty * generated.count(token)
    return result


@pytest.mark.parametrize("length", [3, 100, 290])
def test_penalties_are_those_of_plain_python(length: int) -> None:
    chooser = np.random.default_rng(length)
    rows = [
        Row(repeat_penalty=1.3),
        Row(repeat_penalty=0.8, repeat_last_n=-1),
        Row(repeat_penalty=1.5, repeat_last_n=0),
        Row(presence_penalty=0.7, generated_from=2),
        Row(frequency_penalty=-0.4, generated_from=2),
        Row(
            repeat_penalty=1.1,
            repeat_last_n=10,
            presence_penalty=1,
            frequency_penalty=2,
            generated_from=length // 2,
        ),
        Row(),
    ]
    logits = chooser.normal(0, 3, (len(rows), 60)).astype(np.float32)
    history = chooser.integers(0, 60, (len(rows), CONTEXT)).astype(np.int32)
    result = jax.jit(sampling.penalize)(
        jnp.array(logits), settings_of(rows, 60), jnp.array(history), jnp.full(len(rows), length, jnp.int32)
    )
    for i, row in enumerate(rows):
        expected = penalized(logits[i], row, history[i, :length].tolist())
        np.testing.assert_allclose(result[i], expected, rtol=1e-5, atol=1e-5)


def test_bias_and_mask_decide_what_is_possible() -> None:
    logits = np.zeros((4, 500), np.float32)
    logits[:, 3] = 10
    mask = np.zeros((4, 16), np.uint32)
    mask[1:3, 2] = 1 << 5  # token 69
    rows = [
        Row(temperature=0, bias=((3, -100.0), (50, 1.0))),
        Row(temperature=0, masked=True),
        Row(temperature=1, masked=True),
        Row(temperature=1, masked=True),
    ]
    drawn = draw(logits, rows, mask=mask)
    assert np.asarray(drawn.token_ids)[:3].tolist() == [50, 69, 69]
    assert np.asarray(drawn.status).tolist() == [OK, OK, OK, NOTHING_ALLOWED]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_logits_are_told_for_their_row_only(bad: float) -> None:
    logits = np.stack([random_logits(500, 1)] * 3)
    logits[1] = bad
    expected = [OK, BAD_LOGITS, OK]
    assert np.asarray(sampling.greedy(jnp.array(logits)).status).tolist() == expected
    drawn = draw(logits, [Row(), Row(), Row(temperature=0)])
    assert np.asarray(drawn.status).tolist() == expected


def test_one_nan_among_good_logits_is_bad() -> None:
    logits = np.stack([random_logits(500, 1)] * 2)
    logits[0, 17] = np.nan
    assert np.asarray(draw(logits, [Row(), Row()]).status).tolist() == [BAD_LOGITS, OK]


@pytest.mark.parametrize("size", [12, 500, 30_001])
def test_log_probabilities(size: int) -> None:
    logits = np.stack([random_logits(size, seed) for seed in range(2)])
    tokens = np.array([3, 11], np.int32)
    found = jax.jit(sampling.log_probabilities)(
        jnp.array(logits), jnp.array(tokens), jnp.array([True, False])
    )
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    np.testing.assert_allclose(found.chosen, exact[[0, 1], tokens], rtol=1e-4, atol=1e-4)
    order = np.argsort(-exact, axis=-1, kind="stable")[:, :20]
    assert np.asarray(found.top_ids).tolist() == order.tolist()
    np.testing.assert_allclose(found.top, np.take_along_axis(exact, order, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [100, 40_000, 40_001])
def test_largest_is_a_sorted_top(size: int) -> None:
    values = np.stack([random_logits(size, seed) for seed in range(3)])
    count = min(128, size)
    top, ids = jax.jit(sampling.largest, static_argnums=1)(jnp.array(values), count)
    np.testing.assert_array_equal(top, -np.sort(-values, axis=-1)[:, :count])
    np.testing.assert_array_equal(np.take_along_axis(values, np.asarray(ids), -1), top)


@pytest.mark.slow
def test_row_by_row_is_the_same_as_together() -> None:
    logits = np.stack([random_logits(500, seed) for seed in range(len(FILTERS))])
    rows = [replace(row, seed=i, logprobs=i % 2 == 0) for i, row in enumerate(FILTERS)]
    mask = np.zeros((len(rows), 16), np.uint32)
    history = np.zeros((len(rows), CONTEXT), np.int32)
    arguments = (logits, settings_of(rows, 500), mask, history, np.full(len(rows), 5, np.int32))
    each, each_logprobs = jax.jit(sampling.draw_each)(*arguments)
    together, logprobs = jax.jit(sampling.draw_together)(*arguments)
    assert np.array_equal(each.token_ids, together.token_ids)
    np.testing.assert_allclose(each_logprobs.top[::2], logprobs.top[::2], atol=1e-5)


def test_nothing_compiles_for_new_settings() -> None:
    logits = np.stack([random_logits(500, 1)] * 2)
    draw(logits, [Row(), Row()])
    compiled = _draw._cache_size()
    draw(logits, [Row(temperature=0.123, top_k=7, bias=((1, 2.0),)), Row(seed=99, repeat_penalty=1.2)])
    assert _draw._cache_size() == compiled

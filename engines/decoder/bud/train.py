"""The training loop of bud: resumable, with a trapezoid schedule and a checkpoint every few minutes.

Writes numpy archives only. Knows batches as arrays, not where texts lie. Called by `__main__`.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engines.decoder.bud import network, optimizer
from engines.decoder.bud.batches import Batch, BatchSource, pack, phase_at
from engines.decoder.bud.network import Params
from engines.decoder.bud.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """`steps` of 8,192 tokens; the rate rises over `warmup` steps and falls linearly from `decay_from` on."""

    steps: int
    seed: int = 0
    warmup: int = 30
    decay_from: float = 0.55
    checkpoint_seconds: float = 180.0

    def scale(self, step: int) -> float:
        """The schedule's factor of the step size."""
        rising = min(1.0, (step + 1) / self.warmup)
        falling = (self.steps - step) / (self.steps * (1 - self.decay_from))
        return min(rising, falling, 1.0)


@partial(jax.jit, donate_argnums=(0, 1))
def train_step(
    params: Params, state: optimizer.State, arrays: tuple[Array, ...], scale: Array, step: Array
) -> tuple[Params, optimizer.State, Array]:
    nats, gradients = jax.value_and_grad(network.loss)(params, *arrays)
    params, state = optimizer.update(params, gradients, state, scale, step)
    return params, state, nats


def arrays_of(batch: Batch) -> tuple[Array, ...]:
    return tuple(jnp.asarray(part) for part in (batch.tokens, batch.targets, batch.weights, batch.segments))


def train(plan: Plan, source: BatchSource, folder: Path) -> Params:
    """Run or resume `plan`, keeping its state in `folder`; returns the final parameters."""
    path = folder / "checkpoint.npz"
    if path.exists():
        params, state, start = load_checkpoint(path)
    else:
        params = network.init_params(network.SHAPE, plan.seed)
        state, start = optimizer.init_state(params), 0
    saved = started = time.monotonic()
    losses: list[Array] = []
    for step in range(start, plan.steps):
        batch = source.batch(step, phase_at(step / plan.steps))
        params, state, nats = train_step(
            params, state, arrays_of(batch), jnp.float32(plan.scale(step)), jnp.float32(step)
        )
        losses.append(nats)
        if (step + 1) % 10 == 0:
            now = time.monotonic()
            mean = float(np.mean([float(value) for value in losses]))
            record = {"step": step + 1, "loss": round(mean, 4), "seconds": round(now - started, 1)}
            with open(folder / "losses.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
            logger.info("step %d of %d: loss %.3f, %.1f s", step + 1, plan.steps, mean, now - started)
            losses = []
            if now - saved > plan.checkpoint_seconds:
                save_checkpoint(path, params, state, step + 1)
                saved = now
    save_checkpoint(path, params, state, plan.steps)
    return params


def save_checkpoint(path: Path, params: Params, state: optimizer.State, step: int) -> None:
    """Write everything needed to go on; a broken-off write leaves the last checkpoint whole."""
    arrays = {f"params/{name}": np.asarray(value) for name, value in params.items()}
    for moment, values in state.items():
        arrays |= {f"{moment}/{name}": np.asarray(value) for name, value in values.items()}
    partial_path = path.with_suffix(".partial.npz")
    arrays["step"] = np.asarray(step)
    np.savez(partial_path, allow_pickle=False, **arrays)
    partial_path.replace(path)


def load_checkpoint(path: Path) -> tuple[Params, optimizer.State, int]:
    """What `save_checkpoint` wrote."""
    groups: dict[str, Params] = {"params": {}, "first": {}, "second": {}}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            group, _, rest = name.partition("/")
            if rest:
                groups[group][rest] = jnp.asarray(archive[name])
        step = int(archive["step"])
    return groups["params"], {"first": groups["first"], "second": groups["second"]}, step


def held_out_loss(params: Params, texts: tuple[str, ...], tokenizer: Tokenizer) -> tuple[float, float]:
    """(nats a token, nats a character) of plain `texts`, each its own document."""
    documents = [tokenizer.document(text) for text in texts]
    documents = [(ids[:513], learnt[:513]) for ids, learnt in documents]
    rows = -(-sum(len(ids) for ids, _ in documents) // 512) + 8
    batch = pack(documents, rows, 512)
    nats, total = 0.0, 0.0
    evaluate = jax.jit(network.loss)
    for row in range(0, rows - rows % 8, 8):
        part = tuple(array[row : row + 8] for array in arrays_of(batch))
        weight = float(part[2].sum())
        nats += float(evaluate(params, *part)) * weight
        total += weight
    characters = sum(len(tokenizer.decode(ids[1:])) for ids, _ in documents)
    return nats / total, nats / characters

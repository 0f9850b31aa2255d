"""Writes tests/golden/logits/<family>.npz: what transformers answers for the tiny models of `recipe.py`.

Run it in an environment with torch and transformers: python -m tests.parity.make_golden [family ...]
Stored: the config.json transformers wrote, tensor names and shapes, and logits float32 [tokens, vocabulary].
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.parity import recipe

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "logits"


def build(family: str, **changes: Any) -> tuple[Any, dict[str, Any], dict[str, list[int]]]:
    """The transformers model with the recipe's weights, its config.json, and its tensors' shapes.

    `changes` replace arguments of the family's configuration.
    """
    prefix, arguments = recipe.FAMILIES[family]
    config_class = getattr(transformers, f"{prefix}TextConfig", None) or getattr(
        transformers, f"{prefix}Config"
    )
    head = "TextModel" if family in recipe.ENCODERS else "ForCausalLM"
    model = getattr(transformers, f"{prefix}{head}")(config_class(**(arguments | changes))).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
    tied = config.get("tie_word_embeddings")
    state = {name: value for name, value in model.state_dict().items() if not (tied and "lm_head" in name)}
    shapes = {name: list(value.shape) for name, value in state.items()}
    weights = recipe.make_tensors(shapes, config["model_type"].removesuffix("_text") in recipe.SHIFTED)
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(torch.from_numpy(np.asarray(weights[name])))
    return model, config, shapes


def answer(model: Any, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Float32 logits [tokens, vocabulary], or an encoder's hidden states, of one uncached pass."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(torch.from_numpy(ids[None].astype(np.int64)), use_cache=False)
    scores = out.logits if "logits" in out else out.last_hidden_state
    values: np.ndarray[Any, Any] = scores[0].float().numpy()
    return values


def main(families: list[str]) -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for family in families or list(recipe.FAMILIES):
        model, config, shapes = build(family)
        logits = answer(model, recipe.token_ids())
        described = json.dumps({"config": config, "shapes": shapes})
        np.savez_compressed(
            GOLDEN / f"{family}.npz", logits=logits, model=np.frombuffer(described.encode(), np.uint8)
        )
        print(f"{family}: {len(shapes)} tensors, largest logit {np.abs(logits).max():.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])

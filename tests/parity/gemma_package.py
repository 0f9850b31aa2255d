"""Tiny models of google-deepmind/gemma 4.x as a reference and as the writer of Flax trees.

Importing this needs the package and the parts of kauldron that are pure Python. The rest of kauldron imports
TensorFlow, of which the models use nothing: what they do use is written out here.
"""

from __future__ import annotations

import dataclasses
import importlib.machinery
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from tests.parity import recipe


class _Identity(linen.Module):  # type: ignore[misc]
    """What `kd.nn.Identity` does: a name for a value."""

    def __call__(self, x: Any, *_: Any, **__: Any) -> Any:
        return x


def _module(name: str, **values: Any) -> None:
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__dict__.update(values)
    sys.modules[name] = made


_module("tensorflow", Tensor=type("Tensor", (), {}))
_module(
    "kauldron.kd",
    nn=types.SimpleNamespace(Identity=_Identity),
    sharding=types.SimpleNamespace(
        ShardingTree=object, REPLICATED=None, with_sharding_constraint=lambda tree, _: tree
    ),
    ckpts=types.SimpleNamespace(InitTransform=object),
    train=types.SimpleNamespace(TrainState=object),
)
import kauldron  # noqa: E402

kauldron.kd = sys.modules["kauldron.kd"]
from gemma.gm.nn import _gemma  # noqa: E402
from gemma.gm.nn.gemma3n import _gemma3n  # noqa: E402
from gemma.gm.nn.gemma4 import _gemma4  # noqa: E402

del sys.modules["tensorflow"]

TINY: dict[str, Any] = {
    "num_embed": 64,
    "embed_dim": 32,
    "hidden_dim": 48,
    "num_heads": 4,
    "head_dim": 16,
    "num_kv_heads": 2,
    "sliding_window_size": 8,
    "vision_encoder": None,
    "audio_encoder": None,
    "per_layer_input_dim": 8,
    "global_key_size": 32,
    "laurel_rank": 6,
}
"""Replaced where a configuration has them; layer counts and patterns stay the published ones."""
UNCAPPED = {"final_logit_softcap": 30.0}
"""The package leaves out the cap that Gemma 3n was published with."""
NO_TABLE = {"per_layer_input_dim": 0, "num_global_kv_heads": 1}
EXPERTS = {"num_experts": 16, "top_k_experts": 8, "expert_dim": 24, "moe_dense_hidden_dim": 48}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gemma2 2B": (_gemma.Gemma2_2B, {}),
    "gemma2 9B": (_gemma.Gemma2_9B, {}),
    "gemma2 27B": (_gemma.Gemma2_27B, {}),
    "gemma3 270M": (_gemma.Gemma3_270M, {}),
    "gemma3 4B": (_gemma.Gemma3_4B, {}),
    "gemma3 27B": (_gemma.Gemma3_27B, {}),
    "gemma3n E2B": (_gemma3n.Gemma3n_E2B, UNCAPPED),
    "gemma3n E4B": (_gemma3n.Gemma3n_E4B, UNCAPPED),
    "gemma4 E2B": (_gemma4.Gemma4_E2B, {"num_kv_heads": 1, "override_kv_shared_ffw_hidden": 96}),
    "gemma4 E4B": (_gemma4.Gemma4_E4B, {}),
    "gemma4 26B-A4B": (_gemma4.Gemma4_26B_A4B, NO_TABLE | EXPERTS),
    "gemma4 31B": (_gemma4.Gemma4_31B, NO_TABLE),
}


def build(name: str) -> tuple[Any, dict[str, Any]]:
    """The float32 model and its parameter tree, random by the recipe."""
    model_class, changes = MODELS[name]
    config = model_class.config
    fields = {field.name for field in dataclasses.fields(config)}
    known = {key: value for key, value in (TINY | changes).items() if key in fields}
    more = {"text_only": True} if hasattr(model_class, "text_only") else {}
    model = model_class(config=dataclasses.replace(config, **known), dtype=jnp.float32, **more)
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    shifted = name.startswith(("gemma2", "gemma3 "))
    experts = "num_experts" in changes
    return model, jax.tree.map_with_path(
        lambda path, leaf: _values(path, leaf.shape, shifted, experts), shapes
    )


def _values(path: Any, shape: tuple[int, ...], shifted: bool, experts: bool) -> np.ndarray[Any, Any]:
    """As `recipe.make_tensors`: depends on the name only, of a magnitude that keeps 60 layers apart."""
    name = "/".join(part.key for part in path)
    noise = recipe.make_tensors({f"{name}.bias": shape}, False)[f"{name}.bias"] * 5  # standard normal
    if name.endswith("attn/query_norm/scale"):
        return 0.2 + 0.04 * noise  # random attention of scale 1 is so sharp that rounding would show
    if name.endswith("pre_ffw_norm/scale") and experts:
        return np.ones_like(noise)  # the package's router reads what this norm gives, all others the residual
    if "post_" in name:
        return 0.3 + 0.06 * noise - shifted  # keeps 60 layers of noise below what the tokens say
    if name.endswith("_coefs"):
        return 0.1 * noise
    if name.endswith(("norm/scale", "norm_layer/scale")):
        return (0.0 if shifted else 1.0) * np.ones_like(noise) + 0.2 * noise
    if name.endswith(("skip_scale", "router_scale", "per_expert_scale", "correct_output_scale")):
        return 1.0 + 0.1 * noise
    if "embedding" in name:
        return 0.3 * noise
    return noise / np.float32(_inputs(name, shape) ** 0.5)


def _inputs(name: str, shape: tuple[int, ...]) -> int:
    """How many values a product of this leaf adds up."""
    if name.endswith("gating_einsum"):
        return 32
    if name.endswith("attn_vec_einsum/w"):
        return shape[0] * shape[1]
    return shape[-2] if len(shape) > 1 else 1


def answer(model: Any, params: Any, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Float32 logits [tokens, vocabulary] of one uncached pass."""
    run = jax.jit(
        lambda tree, tokens: model.apply({"params": tree}, tokens).logits,
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return np.asarray(run(params, jnp.asarray(ids[None])))[0]

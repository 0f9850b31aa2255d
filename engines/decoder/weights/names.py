"""What each container calls our parameters: one row per parameter, one column per container.

`{}` stands for the layer number. Rows that depend on the architecture are functions below the tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from engines.decoder.config import DecoderConfig
from engines.decoder.params import param_specs

GGUF: dict[str, str] = {
    "altup_projection.0": "altup_proj.weight/0",
    "altup_projection.1": "altup_proj.weight/1",
    "altup_projection.2": "altup_proj.weight/2",
    "altup_unembed.0": "altup_unembd_proj.weight/0",
    "altup_unembed.1": "altup_unembd_proj.weight/1",
    "altup_unembed.2": "altup_unembd_proj.weight/2",
    "layers.{}.altup_correct": "blk.{}.altup_correct_coef.weight",
    "layers.{}.altup_predict": "blk.{}.altup_predict_coef.weight",
    "layers.{}.altup_scale": "blk.{}.altup_correct_scale.weight",
    "layers.{}.altup_router": "blk.{}.altup_router.weight",
    "layers.{}.altup_router_norm": "blk.{}.altup_router_norm.weight",
    "layers.{}.laurel_left": "blk.{}.laurel_l.weight",
    "layers.{}.laurel_right": "blk.{}.laurel_r.weight",
    "layers.{}.post_laurel_norm": "blk.{}.laurel_post_norm.weight",
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "per_layer_embedding": "per_layer_token_embd.weight",
    "per_layer_model_projection": "per_layer_model_proj.weight",
    "per_layer_projection_norm": "per_layer_proj_norm.weight",
    "dense.0": "dense_2.weight",
    "dense.1": "dense_3.weight",
    "layers.{}.attention_norm": "blk.{}.attn_norm.weight",
    "layers.{}.q": "blk.{}.attn_q.weight",
    "layers.{}.k": "blk.{}.attn_k.weight",
    "layers.{}.v": "blk.{}.attn_v.weight",
    "layers.{}.o": "blk.{}.attn_output.weight",
    "layers.{}.q_bias": "blk.{}.attn_q.bias",
    "layers.{}.k_bias": "blk.{}.attn_k.bias",
    "layers.{}.v_bias": "blk.{}.attn_v.bias",
    "layers.{}.o_bias": "blk.{}.attn_output.bias",
    "layers.{}.q_norm": "blk.{}.attn_q_norm.weight",
    "layers.{}.k_norm": "blk.{}.attn_k_norm.weight",
    "layers.{}.post_attention_norm": "blk.{}.post_attention_norm.weight",
    "layers.{}.ffn_norm": "blk.{}.ffn_norm.weight",
    "layers.{}.gate": "blk.{}.ffn_gate.weight",
    "layers.{}.up": "blk.{}.ffn_up.weight",
    "layers.{}.down": "blk.{}.ffn_down.weight",
    "layers.{}.post_ffn_norm": "blk.{}.post_ffw_norm.weight",
    "layers.{}.layer_scale": "blk.{}.layer_output_scale.weight",
    "layers.{}.per_layer_gate": "blk.{}.inp_gate.weight",
    "layers.{}.per_layer_projection": "blk.{}.proj.weight",
    "layers.{}.post_per_layer_norm": "blk.{}.post_norm.weight",
    "layers.{}.post_dense_norm": "blk.{}.post_ffw_norm_1.weight",
    "layers.{}.pre_experts_norm": "blk.{}.pre_ffw_norm_2.weight",
    "layers.{}.post_experts_norm": "blk.{}.post_ffw_norm_2.weight",
    "layers.{}.router": "blk.{}.ffn_gate_inp.weight",
    "layers.{}.router_scale": "blk.{}.ffn_gate_inp.scale",
    "layers.{}.expert_scale": "blk.{}.ffn_down_exps.scale",
    "layers.{}.experts_gate_up": "blk.{}.ffn_gate_up_exps.weight",
    "layers.{}.experts_down": "blk.{}.ffn_down_exps.weight",
}

HUGGING_FACE: dict[str, str] = {
    "altup_projection.0": "altup_projections.0.weight",
    "altup_projection.1": "altup_projections.1.weight",
    "altup_projection.2": "altup_projections.2.weight",
    "altup_unembed.0": "altup_unembed_projections.0.weight",
    "altup_unembed.1": "altup_unembed_projections.1.weight",
    "altup_unembed.2": "altup_unembed_projections.2.weight",
    "layers.{}.altup_correct": "layers.{}.altup.correction_coefs.weight",
    "layers.{}.altup_predict": "layers.{}.altup.prediction_coefs.weight",
    "layers.{}.altup_scale": "layers.{}.altup.correct_output_scale",
    "layers.{}.altup_router": "layers.{}.altup.modality_router.weight",
    "layers.{}.altup_router_norm": "layers.{}.altup.router_norm.weight",
    "layers.{}.laurel_left": "layers.{}.laurel.linear_left.weight",
    "layers.{}.laurel_right": "layers.{}.laurel.linear_right.weight",
    "layers.{}.post_laurel_norm": "layers.{}.laurel.post_laurel_norm.weight",
    "embedding": "embed_tokens.weight",
    "final_norm": "norm.weight",
    "head": "lm_head.weight",
    "per_layer_embedding": "embed_tokens_per_layer.weight",
    "per_layer_model_projection": "per_layer_model_projection.weight",
    "per_layer_projection_norm": "per_layer_projection_norm.weight",
    "dense.0": "2_Dense/linear.weight",
    "dense.1": "3_Dense/linear.weight",
    "layers.{}.attention_norm": "layers.{}.input_layernorm.weight",
    "layers.{}.q": "layers.{}.self_attn.q_proj.weight",
    "layers.{}.k": "layers.{}.self_attn.k_proj.weight",
    "layers.{}.v": "layers.{}.self_attn.v_proj.weight",
    "layers.{}.o": "layers.{}.self_attn.o_proj.weight",
    "layers.{}.q_bias": "layers.{}.self_attn.q_proj.bias",
    "layers.{}.k_bias": "layers.{}.self_attn.k_proj.bias",
    "layers.{}.v_bias": "layers.{}.self_attn.v_proj.bias",
    "layers.{}.o_bias": "layers.{}.self_attn.o_proj.bias",
    "layers.{}.q_norm": "layers.{}.self_attn.q_norm.weight",
    "layers.{}.k_norm": "layers.{}.self_attn.k_norm.weight",
    "layers.{}.post_attention_norm": "layers.{}.post_attention_layernorm.weight",
    "layers.{}.ffn_norm": "layers.{}.pre_feedforward_layernorm.weight",
    "layers.{}.gate": "layers.{}.mlp.gate_proj.weight",
    "layers.{}.up": "layers.{}.mlp.up_proj.weight",
    "layers.{}.down": "layers.{}.mlp.down_proj.weight",
    "layers.{}.post_ffn_norm": "layers.{}.post_feedforward_layernorm.weight",
    "layers.{}.layer_scale": "layers.{}.layer_scalar",
    "layers.{}.per_layer_gate": "layers.{}.per_layer_input_gate.weight",
    "layers.{}.per_layer_projection": "layers.{}.per_layer_projection.weight",
    "layers.{}.post_per_layer_norm": "layers.{}.post_per_layer_input_norm.weight",
    "layers.{}.post_dense_norm": "layers.{}.post_feedforward_layernorm_1.weight",
    "layers.{}.pre_experts_norm": "layers.{}.pre_feedforward_layernorm_2.weight",
    "layers.{}.post_experts_norm": "layers.{}.post_feedforward_layernorm_2.weight",
    "layers.{}.router": "layers.{}.router.proj.weight",
    "layers.{}.router_scale": "layers.{}.router.scale",
    "layers.{}.expert_scale": "layers.{}.router.per_expert_scale",
    "layers.{}.experts_gate_up": "layers.{}.experts.gate_up_proj",
    "layers.{}.experts_down": "layers.{}.experts.down_proj",
}

_LAYER = re.compile(r"^layers\.(\d+)\.")


def file_names(config: DecoderConfig, table: Mapping[str, str]) -> dict[str, str]:
    """Canonical name -> the container's name, for every parameter of `config`."""
    names = {}
    for canonical in param_specs(config):
        layer = _LAYER.match(canonical)
        if layer is None:
            names[canonical] = table[canonical]
        else:
            pattern = table[_LAYER.sub("layers.{}.", canonical)]
            names[canonical] = pattern.format(layer[1])
    return names


def hugging_face_names(config: DecoderConfig) -> dict[str, str]:
    """As `file_names`. Without post-norms `post_attention_layernorm` is the norm before the feed-forward."""
    table = dict(HUGGING_FACE)
    if not config.post_norms:
        table["layers.{}.ffn_norm"] = "layers.{}.post_attention_layernorm.weight"
    return file_names(config, table)

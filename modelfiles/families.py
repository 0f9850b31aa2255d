"""What the families of models have in common by name: turn markers, end markers, architecture names.

Tables of strings only. Ids are never written here: they are looked up by string in each vocabulary.
Read by the tokenizer loader and by `describe`.
"""

from __future__ import annotations

from typing import Final

END_MARKERS: Final[frozenset[str]] = frozenset(
    {
        "</s>",
        "<eos>",
        "<end_of_turn>",
        "<turn|>",
        "<|tool_response>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|eot|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|endofturn|>",
        "<｜end▁of▁sentence｜>",
        "<EOT>",
        "<_EOT>",
        "[EOT]",
        "[EOS]",
    }
)
"""Tokens that end the model's turn in every family that has them (Gemma, Llama, ChatML, Phi, ...)."""

STRUCTURE_MARKERS: Final[frozenset[str]] = END_MARKERS | {
    "<s>",
    "<bos>",
    "<pad>",
    "<start_of_turn>",
    "<|turn>",
    "<|think|>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
    "<start_of_audio>",
    "<end_of_audio>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|python_tag|>",
    "<|im_start|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|start|>",
    "<|message|>",
    "<|channel|>",
    "<|start_of_role|>",
    "<|end_of_role|>",
    "<|START_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<｜begin▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|channel>",
    "<channel|>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<tool_response|>",
    '<|"|>',
    "<start_function_call>",
    "<end_function_call>",
    "<start_function_declaration>",
    "<end_function_declaration>",
    "<start_function_response>",
    "<end_function_response>",
    "<escape>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[THINK]",
    "[/THINK]",
    "[IMG]",
}
"""Control tokens whatever kind a file gives them: not shown, and not made from a user's text.

Tags such as `<think>` and `<tool_call>` are not among them: vocabularies that have them as a token call it
ordinary text, and templates and parsers treat it as such."""

HARMONY_MARKERS: Final = ("<|return|>", "<|call|>")
"""Where both exist, `<|end|>` ends a message and not the turn."""

ARCHITECTURES: Final[dict[str, str]] = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "gemma3n": "gemma3n",
    "gemma3n_text": "gemma3n",
    "gemma4": "gemma4",
    "gemma4_text": "gemma4",
    "gemma4_unified": "gemma4",
    "gemma4_unified_text": "gemma4",
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "ministral": "llama",
    "smollm3": "smollm3",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "granite": "granite",
    "cohere": "command-r",
    "cohere2": "cohere2",
    "olmo2": "olmo2",
    "starcoder2": "starcoder2",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "falcon": "falcon",
    "mpt": "mpt",
    "bert": "bert",
    "nomic_bert": "nomic-bert",
    "gpt_oss": "gpt-oss",
}
"""`model_type` of a config.json -> the name GGUF and our engines use."""

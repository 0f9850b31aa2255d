"""Greedy tokens of another library, for `gemmule check --compare`: run by a Python of the user's own.

Reads one JSON object on stdin (`library`, `model`, `prompt`, `count`, `text`) and writes one to stdout:
`tokens`, the text's own `encoded` ids where the library has its tokenizer, and `version`. Only the standard
library and that one are imported, by name, since nothing of ours is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def transformers_tokens(asked: dict[str, Any]) -> dict[str, Any]:
    """Of a folder of safetensors, in float32, through the library's own cache."""
    torch, transformers = import_module("torch"), import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(asked["model"]).float().eval()
    tokens: list[int] = []
    fed, past = asked["prompt"], None
    with torch.no_grad():
        while len(tokens) < asked["count"]:
            out = model(input_ids=torch.tensor([fed]), past_key_values=past, use_cache=True)
            tokens.append(int(out.logits[0, -1].argmax()))
            fed, past = tokens[-1:], out.past_key_values
    return {"tokens": tokens, "encoded": encoded(transformers, asked), "version": transformers.__version__}


def encoded(transformers: Any, asked: dict[str, Any]) -> list[int] | None:
    """The text in the library's own tokens; None where the folder has no tokenizer it can read."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(asked["model"])
        return list(tokenizer(asked["text"])["input_ids"])
    except Exception:  # whatever that library raises, the comparison of tokens goes on
        return None


def llama_cpp_tokens(asked: dict[str, Any]) -> dict[str, Any]:
    """Of a GGUF file, by llama-cpp-python."""
    llama_cpp = import_module("llama_cpp")
    context = len(asked["prompt"]) + asked["count"] + 8
    model = llama_cpp.Llama(model_path=asked["model"], n_ctx=context, verbose=False)
    tokens: list[int] = []
    for token in model.generate(asked["prompt"], top_k=1, temp=0.0, repeat_penalty=1.0):
        tokens.append(int(token))
        if len(tokens) == asked["count"]:
            break
    own = model.tokenize(asked["text"].encode(), add_bos=True, special=False)
    return {"tokens": tokens, "encoded": list(own), "version": llama_cpp.__version__}


LIBRARIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "transformers": transformers_tokens,
    "llama_cpp": llama_cpp_tokens,
}


def main() -> None:
    asked = json.load(sys.stdin)
    found = LIBRARIES[asked["library"]](asked)
    sys.stdout.write("\n" + json.dumps(found) + "\n")  # the last line: libraries print, too


if __name__ == "__main__":
    main()

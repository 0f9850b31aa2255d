"""transformers as a peer: random weights of a given config, driven by lines of JSON. Knows nothing of ours.

Runs in an interpreter that has torch and transformers (`TorchPeer` starts it). Reads one command a line and
answers each with one line: `{"load": config, "dtype": "float32", "threads": 2}`, then
`{"prompt": 16, "tokens": 16, "streams": 1}`, answered by tokens a second of the prompts and of the streams.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def load(command: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(command["threads"])
    config = AutoConfig.for_model(**command["load"])
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, command["dtype"]))
    return model.eval()


def generate(model: Any, prompt: int, tokens: int, streams: int) -> dict[str, float]:
    """Greedy decoding with its own cache, the loop of `generate` without what that adds to a step."""
    import torch

    ids = torch.randint(512, model.config.vocab_size, (streams, prompt))
    with torch.inference_mode():
        started = time.perf_counter()
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        chosen = out.logits[:, -1:].argmax(-1)
        since = time.perf_counter()
        for _ in range(tokens):
            out = model(input_ids=chosen, past_key_values=out.past_key_values, use_cache=True)
            chosen = out.logits[:, -1:].argmax(-1)
        until = time.perf_counter()
    return {"prefill": streams * prompt / (since - started), "decode": streams * tokens / (until - since)}


def main() -> None:
    model: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        if "load" in command:
            model = load(command)
            answer: dict[str, Any] = {"ready": True}
        else:
            answer = generate(model, **command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""One real pull from each source, for a machine with the internet: `python -m tests.registry.live_pull`.

Never part of the tests. Small models, a few hundred megabytes in all (Kaggle's is larger); Kaggle needs
credentials and consent and is left out, aloud, without them. Each pull is planned first, broken off once and
then brought to its end, and what came is read again byte by byte. Ends with 1 when anything failed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import aclosing
from pathlib import Path

from modelfiles.describe import describe
from registry.errors import RegistryError
from registry.pull import ClientSettings, Puller
from registry.sources.kaggle import find_credentials
from registry.store import Store

MODELS = {
    "Ollama's registry": "all-minilm:22m",
    "Hugging Face, GGUF": "hf.co/ggml-org/stories15M_MOE",
    "Hugging Face, one file": "https://huggingface.co/ggml-org/models/resolve/main/tinyllamas/stories260K.gguf",
    "Hugging Face, safetensors": "hf.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    "a plain address, redirected": (
        "https://github.com/ggml-org/llama.cpp/raw/master/models/ggml-vocab-gpt-2.gguf"
    ),
    "Kaggle": "kaggle://google/gemma-3/flax/gemma3-1b-it",
}
INTERRUPTED_AT = 4 << 20
"""Bytes after which each pull is broken off the first time."""


async def pull(puller: Puller, reference: str, stop_at: int | None) -> int:
    """Pulls, until that many bytes of one file are there if a number is given; the bytes told last."""
    done = 0
    async with aclosing(puller.pull(reference)) as lines:
        async for line in lines:
            done = max(done, line.completed or 0)
            if stop_at is not None and done >= stop_at:
                break
    return done


async def one(puller: Puller, store: Store, reference: str) -> str:
    """Plan, interruption, pull; what to say about it. Raises RegistryError."""
    plan = await puller.plan(reference)
    plan.require_room()
    before = await pull(puller, reference, INTERRUPTED_AT)
    left = (await puller.plan(reference)).download_bytes
    await pull(puller, reference, None)
    model = store.get(plan.name)
    if plan.complete and model.size < plan.total_bytes:
        raise RegistryError(f"{model.size:,} bytes came, {plan.total_bytes:,} were announced")
    return f"{model.size:,} bytes in {len(model.files)} files; {left:,} left after breaking off at {before:,}"


async def main() -> int:
    """Pulls each into a store of its own; prints what happened."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "models")
        puller = Puller(store, ClientSettings(environment=dict(os.environ)), describe)
        for source, reference in MODELS.items():
            if source == "Kaggle" and not find_credentials(os.environ):
                print(f"{source}: left out; set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY")
                continue
            try:
                print(f"{source}: {reference}: {await one(puller, store, reference)}")
            except RegistryError as error:
                failed += 1
                print(f"{source}: {reference}: FAILED: {type(error).__name__}: {error}")
        await puller.close()
        problems = store.fsck().problems
        for problem in problems:
            print(f"damaged: {problem.path}: {problem.message}")
    print(f"{failed} of {len(MODELS)} failed")
    return 1 if failed or problems else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

"""One real pull from each source, for a machine with the internet: `python -m tests.registry.live_pull`.

Never part of the tests. Small models; Kaggle needs credentials and consent and is left out without them.
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

MODELS = [
    "all-minilm:22m",
    "hf.co/ggml-org/stories15M_MOE",
    "https://huggingface.co/ggml-org/models/resolve/main/tinyllamas/stories260K.gguf",
]
KAGGLE = "kaggle://google/gemma-3/flax/gemma3-270m-it"


async def main() -> int:
    """Pulls each into a store of its own; prints what happened."""
    settings = ClientSettings(environment=dict(os.environ))
    wanted = [*MODELS, *([KAGGLE] if find_credentials(os.environ) else [])]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "models")
        puller = Puller(store, settings, describe)
        for text in wanted:
            try:
                async with aclosing(puller.pull(text)) as lines:
                    last = [line async for line in lines][-1]
                print(f"{text}: {last.status}")
            except RegistryError as error:
                failed += 1
                print(f"{text}: {type(error).__name__}: {error}")
        print(f"{len(store.list())} models, problems: {store.fsck().problems}")
        await puller.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

"""Training as a process of its own: `python -m engines.classifier --images FOLDER --output FOLDER`.

Prints one JSON object a line: the progress of each epoch, or `{"error": ...}` and exit code 1. Called by
`gemmule train`, which loads no JAX itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.classifier.config import ClassifierConfig
from engines.classifier.storage import save
from engines.classifier.train import Recipe, read_folder, train


def say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m engines.classifier", description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=Recipe().epochs)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    chosen = parser.parse_args()
    try:
        images, labels, names = read_folder(chosen.images, chosen.side)
        wanted = ClassifierConfig.from_json(ClassifierConfig(names, side=chosen.side).to_json())
        recipe = Recipe(epochs=chosen.epochs, seed=chosen.seed)
        config, tensors = train(wanted, images, labels, recipe, lambda progress: say(asdict(progress)))
    except ValueError as error:
        say({"error": str(error)})
        return 1
    save(chosen.output, config, tensors)
    return 0


if __name__ == "__main__":
    sys.exit(main())

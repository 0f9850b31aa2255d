"""Makes bud from its texts: tokenizer, training, export, evaluation. `make bud` calls this.

    python -m engines.decoder.bud --texts FOLDER [--steps N] [--work FOLDER] [--output FOLDER]

Effects start here: arguments, folders, logging.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
from pathlib import Path

from engines.decoder.bud.batches import BatchSource
from engines.decoder.bud.corpus import credits_of, read_corpus
from engines.decoder.bud.export import export
from engines.decoder.bud.network import SHAPE
from engines.decoder.bud.report import GREEDY, SAMPLING, tell_stories, write_credits, write_report
from engines.decoder.bud.tokenizer import Tokenizer, train_tokenizer
from engines.decoder.bud.train import Plan, held_out_loss, train

ROOT = Path(__file__).resolve().parents[3]
logger = logging.getLogger(__name__)


def arguments() -> argparse.Namespace:
    default_texts = os.environ.get("GEMMULE_BUD_TEXTS", str(ROOT.parent / "shared" / "data" / "text"))
    parser = argparse.ArgumentParser(prog="python -m engines.decoder.bud", description="Train bud.")
    parser.add_argument(
        "--texts", type=Path, default=Path(default_texts), help="folder of the .jsonl.xz texts"
    )
    parser.add_argument("--steps", type=int, default=940, help="optimiser steps of 8192 tokens")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "bud", help="checkpoints and logs")
    parser.add_argument("--output", type=Path, default=ROOT / "registry" / "bundled", help="where bud goes")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not options.texts.is_dir():
        raise SystemExit(f"no texts at {options.texts}; name their folder with --texts")
    options.work.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(options.texts)
    model = options.work / "tokenizer.model"
    if not model.exists():
        texts = [text for source in corpus.training.values() for text in source]
        train_tokenizer([*texts, *(" ".join(dialogue) for dialogue in corpus.dialogues)], model)
    tokenizer = Tokenizer(model)
    params = train(Plan(steps=options.steps), BatchSource(corpus, tokenizer, seed=0), options.work)
    nats, nats_a_character = held_out_loss(params, corpus.held_out, tokenizer)
    figures = {
        "held-out perplexity": math.exp(nats),
        "held-out bits a character": nats_a_character / math.log(2),
    }
    gguf = options.output / "bud.gguf"
    export(params, SHAPE, model, gguf)
    runs = [
        tell_stories(gguf, tokenizer, sampling, title)
        for title, sampling in (("sampled", SAMPLING), ("greedy", GREEDY))
    ]
    write_report(options.output / "EVALUATION.md", runs, figures)
    write_credits(options.output / "CREDITS.md", list(credits_of(options.texts)))
    for run in runs:
        logger.info("%s: %s", run.title, run.score)


if __name__ == "__main__":
    main()

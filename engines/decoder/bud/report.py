"""Runs the evaluation on an exported bud and writes every output down. Called by `__main__`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from engines.base import SamplingParams
from engines.decoder.bud import tokenizer
from engines.decoder.bud.chat import Turn
from engines.decoder.bud.evaluation import (
    NO_REPEAT_SHARE_THRESHOLD,
    NOUN_SHARE_THRESHOLD,
    Score,
    has_repeated_ngram,
    prompts,
    score,
    sentences_with,
)
from engines.decoder.bud.generate import generate, load_gguf
from engines.decoder.bud.tokenizer import Tokenizer

SAMPLING = SamplingParams(temperature=0.5, top_k=64, top_p=0.9, repeat_penalty=1.1, seed=0)
"""The parameters of the bundled Modelfile, with the evaluation's seed."""

GREEDY = SamplingParams(temperature=0.0)
MAX_TOKENS = 400


@dataclass(frozen=True, slots=True)
class Outputs:
    """(noun, story) for every evaluation prompt."""

    title: str
    stories: list[tuple[str, str]]

    @property
    def score(self) -> Score:
        return score(self.stories)


def tell_stories(gguf: Path, words: Tokenizer, sampling: SamplingParams, title: str) -> Outputs:
    """Answer the 100 prompts."""
    model = load_gguf(gguf)
    asked = prompts()
    ids = [words.prompt([Turn("user", prompt)]) for _, prompt in asked]
    ends = (tokenizer.EOS, tokenizer.END_OF_TURN)
    found = generate(model, ids, sampling, MAX_TOKENS, ends)
    return Outputs(title, [(noun, words.decode(out)) for (noun, _), out in zip(asked, found, strict=True)])


def write_report(path: Path, runs: list[Outputs], figures: dict[str, float]) -> None:
    """Every output as Markdown, the shares beside their thresholds, and one JSON line at the end."""
    lines = ["# Evaluation of bud", "", "Written by `python -m engines.decoder.bud`.", ""]
    lines += ["| run | uses the noun in two sentences | no repeated 8-gram |", "|---|---|---|"]
    lines.append(f"| threshold | {NOUN_SHARE_THRESHOLD:.2f} | {NO_REPEAT_SHARE_THRESHOLD:.2f} |")
    lines += [
        f"| {run.title} | {run.score.noun_share:.2f} | {run.score.no_repeat_share:.2f} |" for run in runs
    ]
    lines += [""] + [f"- {name}: {value:.4f}" for name, value in figures.items()]
    for run in runs:
        lines += ["", f"## {run.title}"]
        for noun, story in run.stories:
            repeats = ", repeats itself" if has_repeated_ngram(story) else ""
            quoted = [f"> {line}".rstrip() for line in story.strip().split("\n")]
            lines += ["", f"**{noun}** ({sentences_with(noun, story)} sentences{repeats})", "", *quoted]
    shares = {run.title: [run.score.noun_share, run.score.no_repeat_share] for run in runs}
    lines += ["", "```json", json.dumps({**figures, **shares}), "```"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_credits(path: Path, lines: list[str]) -> None:
    """The authors of the CC-BY stories, beside the model."""
    head = "# Authors of the CC-BY children's stories that bud learnt from"
    note = "From the Global African Storybook and Pratham Books collections, CC-BY, used as training text."
    path.write_text(
        "\n".join([head, "", note, "", *(f"- {line}" for line in lines)]) + "\n", encoding="utf-8"
    )

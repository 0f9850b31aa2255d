"""Packed training batches: documents drawn from the sources in the shares of the current phase.

Numpy only. A batch follows from the seed and its step: a resumed run sees what an unbroken one does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.decoder.bud import chat
from engines.decoder.bud.corpus import Corpus
from engines.decoder.bud.tokenizer import Tokenizer

Document = tuple[list[int], list[float]]
"""Token ids and the weight of each in the loss."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Until `end` (a share of the run) documents are drawn by `shares` and packed into [rows, length].

    At `noun_rate` a story's main noun is replaced, at `invented_rate` of these by an invented word;
    asked-for nouns have `noun_weight` in the loss.
    `led_share` of the story conversations take a story whose main noun comes in its first sentence.
    """

    end: float
    rows: int
    length: int
    shares: dict[str, float]
    noun_rate: float = 0.5
    noun_weight: float = 1.0
    led_share: float = 0.0
    invented_rate: float = 0.0


PHASES = (
    Phase(
        0.385,
        16,
        512,
        {"tiny": 0.42, "children": 0.08, "gutenberg": 0.06, "story": 0.40, "talk": 0.02, "persona": 0.02},
    ),
    Phase(
        0.60,
        16,
        512,
        {"tiny": 0.20, "children": 0.06, "gutenberg": 0.03, "story": 0.67, "talk": 0.02, "persona": 0.02},
        noun_rate=0.7,
        noun_weight=3.0,
    ),
    Phase(
        0.85,
        16,
        512,
        {"tiny": 0.10, "children": 0.03, "gutenberg": 0.01, "story": 0.80, "talk": 0.04, "persona": 0.02},
        noun_rate=0.7,
        noun_weight=3.0,
        led_share=0.85,
        invented_rate=0.4,
    ),
    Phase(
        1.01,
        8,
        1024,
        {"tiny": 0.06, "story": 0.74, "session": 0.12, "talk": 0.06, "persona": 0.02},
        noun_rate=0.6,
        noun_weight=2.0,
        led_share=0.8,
        invented_rate=0.25,
    ),
)
"""Plain texts first, conversations from the start, long sessions in the last part."""


Maker = Callable[[np.random.Generator, int, Phase], Document]


@dataclass(frozen=True, slots=True)
class Batch:
    """`tokens` and `targets` int32 [rows, length]; `weights` f32 is 0 where nothing is learnt.

    `segments` int32 numbers the documents of a row from 1; 0 is padding.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]
    segments: NDArray[np.int32]


def phase_at(progress: float) -> Phase:
    """The phase of a run that is `progress` (0 to 1) through."""
    return next(phase for phase in PHASES if progress < phase.end)


class BatchSource:
    """Makes batch number `step` of a run."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, seed: int) -> None:
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._seed = seed
        stories = corpus.training["tiny"]
        self._led = [index for index, story in enumerate(stories) if chat.leads_with_its_noun(story)]
        self._order = {
            name: np.random.default_rng([seed, index]).permutation(len(texts))
            for index, (name, texts) in enumerate({**corpus.training, "story": stories}.items())
        }
        self._makers: dict[str, Maker] = {
            "tiny": self._plain("tiny"),
            "children": self._plain("children"),
            "gutenberg": self._plain("gutenberg"),
            "story": self._story,
            "session": self._session,
            "talk": lambda random, *_: tokenizer.conversation(chat.small_talk_turns(random)),
            "persona": self._dialogue,
        }

    def batch(self, step: int, phase: Phase) -> Batch:
        """Draw documents and pack them, the largest that fits first, into rows."""
        random = np.random.default_rng([self._seed, 1000 + step])
        names = list(phase.shares)
        chances = np.array([phase.shares[name] for name in names])
        documents: list[Document] = []
        room = phase.rows * phase.length
        while room > -phase.length:
            name = names[random.choice(len(names), p=chances / chances.sum())]
            ids, learnt = self._makers[name](random, step * 64 + len(documents), phase)
            documents.append((ids[: phase.length + 1], learnt[: phase.length + 1]))
            room -= len(documents[-1][0])
        return pack(documents, phase.rows, phase.length)

    def _plain(self, name: str) -> Maker:
        def make(random: np.random.Generator, count: int, phase: Phase) -> Document:
            text = self._pick(name, count)
            if name == "tiny" and random.random() < 0.5:
                text = chat.substitute_names(text, random)
            return self._tokenizer.document(text)

        return make

    def _pick(self, name: str, count: int) -> str:
        texts = self._corpus.training["tiny" if name == "story" else name]
        return texts[int(self._order[name][count % len(texts)])]

    def _pick_story(self, random: np.random.Generator, count: int, phase: Phase) -> str:
        if phase.led_share and random.random() < phase.led_share:
            return self._corpus.training["tiny"][self._led[random.integers(len(self._led))]]
        return self._pick("story", count)

    def _story(self, random: np.random.Generator, count: int, phase: Phase) -> Document:
        while True:
            turns = chat.story_turns(
                self._pick_story(random, count, phase), random, phase.noun_rate, phase.invented_rate
            )
            if not chat.mentions_withheld(turns):
                return self._tokenizer.conversation(turns, phase.noun_weight)
            count += 1

    def _session(self, random: np.random.Generator, count: int, phase: Phase) -> Document:
        turns = chat.small_talk_turns(random) if random.random() < 0.4 else []
        for number in range(random.integers(2, 4)):
            story = self._pick_story(random, int(random.integers(1 << 30)), phase)
            turns += chat.story_turns(story, random, phase.noun_rate, phase.invented_rate, number > 0)
        if chat.mentions_withheld(turns):
            return self._session(random, count + 1, phase)
        return self._tokenizer.conversation(turns, phase.noun_weight)

    def _dialogue(self, random: np.random.Generator, count: int, phase: Phase) -> Document:
        dialogue = self._corpus.dialogues[random.integers(len(self._corpus.dialogues))]
        return self._tokenizer.conversation(chat.dialogue_turns(dialogue))


def pack(documents: list[Document], rows: int, length: int) -> Batch:
    """Fill rows greedily with whole documents; what finds no room is left out, empty places are padding."""
    waiting = sorted(documents, key=lambda document: len(document[0]), reverse=True)
    tokens = np.zeros((rows, length), np.int32)
    targets = np.zeros((rows, length), np.int32)
    weights = np.zeros((rows, length), np.float32)
    segments = np.zeros((rows, length), np.int32)
    for row in range(rows):
        start, segment = 0, 1
        while True:
            fitting = next(
                (index for index, (ids, _) in enumerate(waiting) if len(ids) - 1 <= length - start), None
            )
            if fitting is None:
                break
            ids, learnt = waiting.pop(fitting)
            stop = start + len(ids) - 1
            tokens[row, start:stop], targets[row, start:stop] = ids[:-1], ids[1:]
            weights[row, start:stop], segments[row, start:stop] = learnt[1:], segment
            start, segment = stop, segment + 1
    return Batch(tokens, targets, weights, segments)

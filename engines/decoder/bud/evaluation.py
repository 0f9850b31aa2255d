"""How bud is judged: 100 story prompts with withheld nouns, and two thresholds, fixed before training began.

Pure text functions and constants; the outputs are produced by `generate` through the project's own engine.
Called by `__main__` and by the tests, which prove that no withheld noun is in the tuning tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


def _table(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NOUN_SHARE_THRESHOLD = 0.80
"""At least this share of the outputs must use the prompt's noun in two sentences or more."""

NO_REPEAT_SHARE_THRESHOLD = 0.90
"""At least this share of the outputs must be free of a repeated 8-gram of words."""

WITHHELD_NOUNS: tuple[str, ...] = _table(
    """penguin hedgehog kangaroo beaver otter peacock crab shark walrus hamster eagle woodpecker
        flamingo panther tortoise badger cheetah falcon hummingbird dragonfly rat weasel
        chimpanzee reindeer eel pheasant toucan astronaut firefighter gardener magician plumber
        mailman tailor carpenter waiter miner juggler acrobat beekeeper postman vampire mummy
        genie cyclops guitar violin flute xylophone trampoline accordion whisk umbrella lantern
        teapot kettle bracelet compass anchor sword ladle globe toothbrush medal napkin
        flashlight toaster typewriter thermometer helicopter submarine tram bicycle hovercraft
        pancake waffle coconut pineapple watermelon pretzel cabbage cucumber avocado waterfall
        iceberg sunflower cactus lighthouse windmill pyramid igloo treehouse greenhouse
        cathedral swamp geyser pinecone dandelion icicle jackal"""
)
"""Nouns that no tuning prompt contains; they may occur in the plain texts of the first phase."""

PROMPT = "Tell me a story about {article} {noun}."

_IRREGULAR = {
    "mouse": "mice",
    "wolf": "wolves",
    "fish": "fish",
    "sheep": "sheep",
    "goose": "geese",
    "man": "men",
    "woman": "women",
    "child": "children",
    "leaf": "leaves",
    "knife": "knives",
    "shelf": "shelves",
    "elf": "elves",
    "thief": "thieves",
    "calf": "calves",
    "scarf": "scarves",
    "deer": "deer",
    "moose": "moose",
    "goldfish": "goldfish",
    "policeman": "policemen",
    "fisherman": "fishermen",
    "gentleman": "gentlemen",
    "snowman": "snowmen",
    "jellyfish": "jellyfish",
    "starfish": "starfish",
    "salmon": "salmon",
    "postman": "postmen",
    "mailman": "mailmen",
    "dice": "dice",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "piano": "pianos",
    "radio": "radios",
    "cactus": "cacti",
    "box": "boxes",
    "dwarf": "dwarves",
    "bison": "bison",
    "buffalo": "buffaloes",
}


def plural(noun: str) -> str:
    """The regular English plural, with the irregular ones of our tables."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def prompts() -> list[tuple[str, str]]:
    """(noun, prompt) for every withheld noun."""
    return [
        (noun, PROMPT.format(article="an" if noun[0] in "aeiou" else "a", noun=noun))
        for noun in WITHHELD_NOUNS
    ]


def sentences(text: str) -> list[str]:
    """Split after closing punctuation and at line breaks."""
    return [part for part in re.split(r"(?<=[.!?])[\"']?\s+|\n+", text) if part.strip()]


def sentences_with(noun: str, text: str) -> int:
    """How many sentences use the noun, singular or plural, whatever its case."""
    pattern = re.compile(rf"\b(?:{re.escape(noun)}|{re.escape(plural(noun))})(?:'s)?\b", re.IGNORECASE)
    return sum(bool(pattern.search(sentence)) for sentence in sentences(text))


def has_repeated_ngram(text: str, size: int = 8) -> bool:
    """Whether any run of `size` words occurs twice."""
    found = re.findall(r"[a-z']+", text.lower())
    grams = [tuple(found[start : start + size]) for start in range(len(found) - size + 1)]
    return len(set(grams)) < len(grams)


@dataclass(frozen=True, slots=True)
class Score:
    """Shares over all outputs, each in [0, 1]."""

    noun_share: float
    no_repeat_share: float

    @property
    def passed(self) -> bool:
        return self.noun_share >= NOUN_SHARE_THRESHOLD and self.no_repeat_share >= NO_REPEAT_SHARE_THRESHOLD


def score(outputs: list[tuple[str, str]]) -> Score:
    """Score (noun, output) pairs."""
    uses = sum(sentences_with(noun, text) >= 2 for noun, text in outputs)
    fresh = sum(not has_repeated_ngram(text) for _, text in outputs)
    return Score(uses / len(outputs), fresh / len(outputs))

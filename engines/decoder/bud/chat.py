"""Tuning conversations made of stories: "tell me a story about X", with X and the names varied.

Pure text and a seeded generator; knows Gemma's turn format as `Turn`s, not tokens. Called by `batches`.
A story's main noun is replaced by another of its kind in prompt and story alike, so that the model must look
at the prompt to know what the story is about. Withheld nouns are never asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from engines.decoder.bud import words
from engines.decoder.bud.evaluation import WITHHELD_NOUNS, plural

_KIND = {noun: kind for kind, nouns in words.NOUNS.items() for noun in nouns}
_SINGULAR = {plural(noun): noun for noun in _KIND} | {noun: noun for noun in _KIND}
_WITHHELD = {form for noun in WITHHELD_NOUNS for form in (noun, plural(noun))}
_GENDER = dict.fromkeys(words.GIRL_NAMES, "girl") | dict.fromkeys(words.BOY_NAMES, "boy")
_NAMES = {"girl": words.GIRL_NAMES, "boy": words.BOY_NAMES}
_TOKEN = re.compile(r"[A-Za-z][A-Za-z-]*")


OPENING = 110
"""Characters of a story's first sentence, about."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn; `role` is `user` or `model`, `emphasis` the noun that the model was asked to tell about."""

    role: str
    text: str
    emphasis: str | None = None


def main_noun(story: str) -> str | None:
    """The tuning noun a story is about: used most, at least three times and within its first sentences."""
    lowered = story.lower()
    counts = Counter(_SINGULAR[word] for word in _TOKEN.findall(lowered) if word in _SINGULAR)
    start = {_SINGULAR.get(word) for word in _TOKEN.findall(lowered[:300])}
    common = {"girl", "boy", "man", "woman", "box", "tree", "house", "park", "store", "door", "garden", "bed"}
    ranked = [
        (count * (0.4 if noun in common else 1.0), noun) for noun, count in counts.items() if noun in start
    ]
    best = max(ranked, default=(0.0, ""))
    return best[1] if best[0] >= 2.5 or (best[1] in common and counts[best[1]] >= 4) else None


def leads_with_its_noun(story: str) -> bool:
    """Whether the main noun comes in the opening: such stories teach to begin with what was asked for."""
    noun = main_noun(story)
    return noun is not None and bool(mentions(story[:OPENING], noun))


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" and not noun.startswith(("unicorn", "uni", "eu")) else "a"


def mentions(story: str, noun: str) -> list[tuple[int, int]]:
    """Where `story` uses `noun`, singular or plural, in any case: (start, end) in characters."""
    pattern = rf"\b(?:{re.escape(noun)}|{re.escape(plural(noun))})\b"
    return [match.span() for match in re.finditer(pattern, story, re.IGNORECASE)]


def substitute_noun(story: str, old: str, new: str) -> str:
    """`story` with every form of `old` replaced by the same form of `new`, and articles made to agree."""
    forms = {old: new, plural(old): plural(new)}
    forms |= {key.capitalize(): value.capitalize() for key, value in forms.items()}
    pattern = re.compile(rf"\b(?:([Aa])(n?) )?({'|'.join(sorted(forms, key=len, reverse=True))})\b")

    def replace(match: re.Match[str]) -> str:
        word = forms[match.group(3)]
        if match.group(1) is None:
            return word
        return f"{match.group(1)}{article(word.lower())[1:]} {word}"

    return pattern.sub(replace, story)


def substitute_names(story: str, random: np.random.Generator) -> str:
    """`story` with each known first name replaced by another of the same gender, each by its own."""
    present = [name for name in dict.fromkeys(re.findall(r"\b[A-Z][a-z]+\b", story)) if name in _GENDER]
    mapping: dict[str, str] = {}
    for name in present:
        pool = [new for new in _NAMES[_GENDER[name]] if new not in present and new not in mapping.values()]
        mapping[name] = pool[random.integers(len(pool))]
    if not mapping:
        return story
    return re.sub(rf"\b({'|'.join(mapping)})\b", lambda match: mapping[match.group()], story)


def invent_noun(random: np.random.Generator) -> str:
    """A word that nobody has seen: nothing but copying tells the model how to write it."""
    parts = [str(random.choice(choices)) for _ in range(2) for choices in (words.ONSETS, words.VOWELS)]
    ending = str(random.choice(words.ENDINGS)) if random.random() < 0.5 else ""
    return "".join([*parts, ending])


def vary(
    story: str, random: np.random.Generator, noun_rate: float, invented_rate: float = 0.0
) -> tuple[str, str | None]:
    """A variant of `story` and its main noun, or None where it has none that may be asked for."""
    if random.random() < 0.5:
        story = substitute_names(story, random)
    noun = main_noun(story)
    if noun is None:
        return story, None
    if random.random() < noun_rate:
        if invented_rate and random.random() < invented_rate:
            new = invent_noun(random)
            return substitute_noun(story, noun, new), new
        kin = [other for other in words.NOUNS[_KIND[noun]] if other not in story.lower()]
        if kin:
            new = kin[random.integers(len(kin))]
            return substitute_noun(story, noun, new), new
    return story, noun


def story_turns(
    story: str,
    random: np.random.Generator,
    noun_rate: float = 0.5,
    invented_rate: float = 0.0,
    follow_up: bool = False,
) -> list[Turn]:
    """A request and the story as its answer; at `noun_rate` its main noun is replaced, by an invented one
    at `invented_rate`.
    """
    story, noun = vary(story, random, noun_rate, invented_rate)
    prompts = words.NEXT_PROMPTS if follow_up else words.STORY_PROMPTS
    if noun is None:
        prompt = str(random.choice(words.OPEN_PROMPTS))
    else:
        draw = random.random()
        thing = f"{article(noun)} {noun}" if draw < 0.85 else plural(noun) if draw < 0.93 else noun
        prompt = str(random.choice(prompts)).format(thing=thing)
    if not follow_up and random.random() < 0.06:
        prompt = f"{random.choice(words.SYSTEM_LINES)}\n\n{prompt}"
    return [Turn("user", prompt), Turn("model", story, noun)]


def small_talk_turns(random: np.random.Generator) -> list[Turn]:
    """One or two exchanges of small talk."""
    turns: list[Turn] = []
    for _ in range(1 + int(random.random() < 0.4)):
        asked, answered = words.SMALL_TALK[random.integers(len(words.SMALL_TALK))]
        turns += [Turn("user", str(random.choice(asked))), Turn("model", str(random.choice(answered)))]
    return turns


def dialogue_turns(dialogue: tuple[str, ...]) -> list[Turn]:
    """A recorded dialogue whose even turns are the user's."""
    return [Turn("model" if index % 2 else "user", text) for index, text in enumerate(dialogue)]


def mentions_withheld(turns: list[Turn]) -> bool:
    """Whether a user turn names a withheld noun; such conversations are not trained on."""
    asked = " ".join(turn.text for turn in turns if turn.role == "user").lower()
    return not _WITHHELD.isdisjoint(_TOKEN.findall(asked))

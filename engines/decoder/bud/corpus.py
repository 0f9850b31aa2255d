"""The texts bud learns from: read, cleaned, put into true case and split into training and held-out stories.

Reads the xz-compressed JSON lines of one folder; knows licences, not tokens. Called by `__main__`.
"""

from __future__ import annotations

import json
import lzma
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LICENCES = {
    "tinystories-sample": "CDLA-Sharing-1.0",
    "tinystories-lowercase": "CDLA-Sharing-1.0",
    "childrens-stories-cc-by": "CC-BY-4.0",
    "gutenberg-children": "public domain",
    "persona-chat-valid": "CC-BY-4.0",
}
"""Every file read, with its licence: nothing share-alike or non-commercial but the CDLA samples."""

GUTENBERG_TITLES = (
    "bryant-stories",
    "burgess-busterbrown",
    "Old Mother West Wind",
    "Grimms Fairy Tales",
    "The Wonderful Wizard of Oz",
    "The Story of Doctor Dolittle",
)
"""The plainest English among the public-domain books; the others are too far from the stories bud tells."""

_CHARACTERS = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "—": "-", "–": "-", "…": "...", "\t": " "}
)
_SPEECH = {
    "said",
    "asked",
    "replied",
    "shouted",
    "cried",
    "called",
    "exclaimed",
    "yelled",
    "answered",
    "whispered",
}
_FAMILY = {
    "mom",
    "dad",
    "mommy",
    "daddy",
    "grandma",
    "grandpa",
    "mum",
    "mummy",
    "mama",
    "papa",
    "grandmother",
}
_DETERMINERS = {"a", "an", "the", "her", "his", "my", "your", "their", "our", "its", "and", "or"}
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Cleaned texts by source; `held_out` never trains and measures perplexity."""

    training: dict[str, tuple[str, ...]]
    dialogues: tuple[tuple[str, ...], ...]
    held_out: tuple[str, ...]


def read_corpus(folder: Path) -> Corpus:
    """Read every text of `LICENCES` in `folder` and hold one TinyStories story in a hundred out."""
    cased = [clean(record["text"]) for record in records(folder / "tinystories-sample.jsonl.xz")]
    cased = [story for story in cased if is_whole(story)]
    true_case = TrueCase.learn(cased)
    lower = [clean(record["text"]) for record in records(folder / "tinystories-lowercase.jsonl.xz")]
    stories = dict.fromkeys(cased + [true_case.restore(story) for story in lower if is_whole(story)])
    tiny = tuple(stories)
    return Corpus(
        training={
            "tiny": tuple(story for index, story in enumerate(tiny) if index % 100),
            "children": tuple(children_stories(folder)),
            "gutenberg": tuple(gutenberg_passages(folder)),
        },
        dialogues=tuple(persona_dialogues(folder)),
        held_out=tuple(story for index, story in enumerate(tiny) if index % 100 == 0),
    )


def records(path: Path) -> Iterator[dict[str, object]]:
    """The JSON objects of one `.jsonl.xz` file."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def clean(text: object) -> str:
    """Plain quotes and dashes, single spaces, paragraphs divided by one empty line."""
    plain = str(text).translate(_CHARACTERS).replace("<|endoftext|>", " ")
    paragraphs = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", plain))
    return "\n\n".join(part for part in paragraphs if part)


def is_whole(story: str) -> bool:
    """Whether a story is long enough, ends with a sentence and is written in ASCII."""
    return len(story) > 200 and story[-1] in '.!?"' and story.isascii()


def children_stories(folder: Path) -> Iterator[str]:
    for record in records(folder / "childrens-stories-cc-by.jsonl.xz"):
        story = clean(record["text"])
        if is_whole(story):
            yield story


CREDITED = ("Text", "Translation", "Translated By", "Adaptation")


def credits_of(folder: Path) -> Iterator[str]:
    """One line for each CC-BY story that was learnt from, as its licence asks: title, then who wrote it."""
    for record in records(folder / "childrens-stories-cc-by.jsonl.xz"):
        if not is_whole(clean(record["text"])):
            continue
        meta = record["meta"]
        assert isinstance(meta, list)
        people = [entry.partition(": ") for entry in meta if entry.partition(":")[0] in CREDITED]
        yield f"{record['title']} - " + "; ".join(f"{role.lower()} {name}" for role, _, name in people)


def gutenberg_passages(folder: Path, size: int = 1800) -> Iterator[str]:
    """Passages of about `size` characters, cut between paragraphs."""
    for record in records(folder / "gutenberg-children.jsonl.xz"):
        title = str(record["title"]).replace("-", " ")
        if title not in {name.replace("-", " ") for name in GUTENBERG_TITLES}:
            continue
        passage: list[str] = []
        for paragraph in clean(record["text"]).replace("_", "").split("\n\n"):
            passage.append(paragraph)
            if sum(map(len, passage)) > size:
                text = "\n\n".join(passage)
                passage = []
                if text.isascii() and sum(map(str.islower, text)) > 0.7 * len(text):
                    yield text[: 2 * size]


def persona_dialogues(folder: Path) -> Iterator[tuple[str, ...]]:
    """Turns that alternate user, model, user, ...; the last turn is the model's."""
    for record in records(folder / "persona-chat-valid.jsonl.xz"):
        messages = record["messages"]
        assert isinstance(messages, list)
        turns = [clean(message["content"]) for message in messages]
        roles = [message["role"] for message in messages]
        if roles == ["user", "assistant"] * (len(roles) // 2) and all(turn.isascii() for turn in turns):
            yield tuple(turns)


@dataclass(frozen=True, slots=True)
class TrueCase:
    """Gives lower-cased stories their capitals back, with the words a cased sample capitalises."""

    capitalised: frozenset[str]
    known: frozenset[str]

    @classmethod
    def learn(cls, stories: list[str]) -> TrueCase:
        """Count each word inside sentences only, where a capital means a name."""
        upper: Counter[str] = Counter()
        lower: Counter[str] = Counter()
        for story in stories:
            for match in re.finditer(r"(?<=[a-z,;] )[A-Za-z]+", story):
                word = match.group()
                (upper if word[0].isupper() else lower)[word.lower()] += 1
        names = {word for word, count in upper.items() if count > lower[word] and count > 1}
        return cls(frozenset(names - _FAMILY), frozenset(upper | lower))

    def restore(self, story: str) -> str:
        """`story` with capitals at sentence starts, in names, in `I` and in forms of address."""
        named = {name for name in re.findall(r"\bnamed ([a-z]+)", story) if name not in self.known}
        out: list[str] = []
        position, previous, in_quote = 0, "", False
        for match in _WORD.finditer(story):
            gap = story[position : match.start()]
            in_quote ^= gap.count('"') % 2 == 1
            out += [gap, self._cased(match, story, gap, previous, in_quote, named)]
            position, previous = match.end(), match.group()
            in_quote &= "\n" not in story[position : position + 1]
        return "".join(out) + story[position:]

    def _cased(
        self, match: re.Match[str], story: str, gap: str, previous: str, in_quote: bool, named: set[str]
    ) -> str:
        word = match.group()
        stem = word.split("'")[0]
        address = word in _FAMILY and previous not in _DETERMINERS
        if stem == "i" or stem in self.capitalised or stem in named or address:
            return word[0].upper() + word[1:]
        if not previous or "\n" in gap or ("." in gap and not gap.endswith(",")):
            return word[0].upper() + word[1:]
        if in_quote and gap.endswith('"'):
            return word[0].upper() + word[1:]
        if re.search(r"[!?]", gap):
            following = set(_WORD.findall(story[match.start() : match.start() + 30]))
            if '"' not in gap or not following & _SPEECH:
                return word[0].upper() + word[1:]
        return word

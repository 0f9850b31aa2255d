"""The judge of bud: its prompts are withheld from tuning, its measures count what they say."""

from __future__ import annotations

import pytest

from engines.decoder.bud import evaluation, words
from engines.decoder.bud.evaluation import has_repeated_ngram, plural, score, sentences_with


def test_there_are_a_hundred_nouns_and_no_tuning_table_has_one() -> None:
    assert len(set(evaluation.WITHHELD_NOUNS)) == len(evaluation.WITHHELD_NOUNS) == 100
    tuning = {noun for nouns in words.NOUNS.values() for noun in nouns}
    withheld = {form for noun in evaluation.WITHHELD_NOUNS for form in (noun, plural(noun))}
    assert not withheld & (tuning | {plural(noun) for noun in tuning})
    spoken = " ".join([*words.STORY_PROMPTS, *words.OPEN_PROMPTS, *words.NEXT_PROMPTS, *words.SYSTEM_LINES])
    spoken += " ".join(text for asked, answered in words.SMALL_TALK for text in (*asked, *answered))
    assert not withheld & set(spoken.lower().replace("?", "").replace(".", "").split())


@pytest.mark.parametrize(
    ("noun", "text", "expected"),
    [
        ("fox", "A fox ran. It was red. The Fox slept!", 2),
        ("fox", "The foxes ran. A firefox is none.", 1),
        ("fox", '"Fox!" he said. "Where is the fox\'s hat?"', 2),
        ("cactus", "Two cacti stood there.\nOne cactus fell", 2),
        ("fox", "A fox met a fox and a fox.", 1),
        ("fox", "", 0),
    ],
)
def test_sentences_with_a_noun_are_counted(noun: str, text: str, expected: int) -> None:
    assert sentences_with(noun, text) == expected


def test_a_repeated_run_of_eight_words_is_found() -> None:
    run = "one two three four five six seven eight"
    assert has_repeated_ngram(f"{run} and then {run.upper()}")
    assert not has_repeated_ngram(f"{run} and then one two three four five six seven nine")
    assert not has_repeated_ngram("too short")


def test_shares_are_over_all_outputs_and_both_count() -> None:
    good = ("fox", "A fox ran. The fox slept.")
    found = score([good, good, good, ("fox", "A dog ran. It slept.")])
    assert (found.noun_share, found.no_repeat_share) == (0.75, 1.0)
    assert not found.passed
    assert score([good]).passed


@pytest.mark.parametrize(
    ("noun", "expected"), [("box", "boxes"), ("pony", "ponies"), ("toy", "toys"), ("mouse", "mice")]
)
def test_plurals(noun: str, expected: str) -> None:
    assert plural(noun) == expected

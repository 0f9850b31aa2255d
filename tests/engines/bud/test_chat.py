"""The tuning conversations: nouns and names change together in prompt and story."""

from __future__ import annotations

import numpy as np

from engines.decoder.bud import chat, corpus
from engines.decoder.bud.chat import Turn

STORY = (
    "Once upon a time, a dog named Spot met Lily. The dog was an old dog. Dogs are kind. Lily and the dog "
    "saw an owl. The owl was wise."
)


def test_the_noun_used_most_is_the_main_noun() -> None:
    assert chat.main_noun(STORY) == "dog"
    assert chat.main_noun("Sam ran home. He was late.") is None


def test_a_noun_is_replaced_in_every_form_and_articles_agree() -> None:
    changed = chat.substitute_noun(STORY, "dog", "elephant")
    assert (
        "an elephant named Spot" in changed and "Elephants are kind" in changed and "The elephant" in changed
    )
    assert "dog" not in changed.lower()
    assert "a cat" in chat.substitute_noun("I saw an owl.", "owl", "cat")


def test_names_are_replaced_one_by_one() -> None:
    changed = chat.substitute_names("Lily met Tim. Tim liked Lily.", np.random.default_rng(0))
    first, _, second = changed.split(".")[0].split()
    assert first != "Lily" and second != "Tim" and changed == f"{first} met {second}. {second} liked {first}."


def test_prompt_and_story_are_about_the_same_thing() -> None:
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(50):
        user, model = chat.story_turns(STORY, random, noun_rate=1.0)
        assert model.emphasis and chat.mentions(model.text, model.emphasis)
        assert chat.mentions(user.text, model.emphasis)
        seen.add(model.emphasis)
    assert len(seen) > 20 and "dog" not in seen


def test_conversations_that_ask_for_a_withheld_noun_are_found() -> None:
    assert chat.mentions_withheld([Turn("user", "Tell me a story about Penguins.")])
    assert not chat.mentions_withheld(
        [Turn("user", "A story about a fox."), Turn("model", "A penguin came.")]
    )


def test_lower_cased_stories_get_their_capitals_back() -> None:
    cased = ["One day Lily saw Tim. She said to Tim, he is my friend. She ran to Lily."] * 3
    true_case = corpus.TrueCase.learn(cased)
    lower = 'one day, lily asked, "where is mom?" her mom smiled. "i am here!" said a boy named zork.'
    expected = 'One day, Lily asked, "Where is Mom?" Her mom smiled. "I am here!" said a boy named Zork.'
    assert true_case.restore(lower) == expected

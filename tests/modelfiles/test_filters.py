"""The text filters: any way of cutting the stream gives the same text, and every token comes out once."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfiles.detokenizer import Detokenizer
from modelfiles.outputs.stop import StopMatcher
from modelfiles.outputs.types import TextChunk, TokenMark
from modelfiles.vocabulary import Vocabulary

CONTROL = 256
BYTES = Vocabulary(
    token_bytes=(*(bytes([value]) for value in range(256)), b"<end>", b"", "né".encode(), b" the"),
    control_token_ids=frozenset({CONTROL}),
    end_token_ids=(CONTROL,),
    bos_token_id=None,
    add_bos=False,
    names={"<end>": CONTROL},
)
STRIPPING = Vocabulary(
    BYTES.token_bytes, BYTES.control_token_ids, (), None, False, {}, strip_leading_space=True
)


def whole_text(ids: list[int]) -> str:
    """The reference: each stretch between control tokens decoded at once."""
    runs = [b""]
    for token_id in ids:
        if token_id == CONTROL:
            runs.append(b"")
        else:
            runs[-1] += BYTES.token_bytes[token_id]
    return "".join(run.decode("utf-8", "replace") for run in runs)


def detokenize(ids: list[int], vocabulary: Vocabulary = BYTES, **options: bool) -> list[TextChunk]:
    filter_ = Detokenizer(vocabulary, **options)
    chunks = [chunk for token_id in ids for chunk in filter_.push(TokenMark(token_id))]
    return chunks + filter_.finish()


@given(st.lists(st.integers(0, len(BYTES.token_bytes) - 1), max_size=40))
def test_pieces_join_to_the_whole_and_tokens_ride_along(ids: list[int]) -> None:
    chunks = detokenize(ids)
    assert "".join(chunk.text for chunk in chunks) == whole_text(ids)
    assert [mark.token_id for chunk in chunks for mark in chunk.tokens] == ids
    assert all(chunk.text or chunk.tokens for chunk in chunks)
    assert [chunk.special for chunk in chunks if chunk.special is not None] == [
        i for i in ids if i == CONTROL
    ]


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_bytes_of_a_text_come_back_as_that_text(text: str) -> None:
    chunks = detokenize(list(text.encode()))
    assert "".join(chunk.text for chunk in chunks) == text


def test_a_character_waits_for_its_last_byte() -> None:
    filter_ = Detokenizer(BYTES)
    fox = "🦊".encode()
    assert [filter_.push(TokenMark(byte)) for byte in fox[:3]] == [[], [], []]
    [chunk] = filter_.push(TokenMark(fox[3]))
    assert (chunk.text, [mark.token_id for mark in chunk.tokens]) == ("🦊", list(fox))


def test_text_before_an_unfinished_character_comes_at_once() -> None:
    filter_ = Detokenizer(Vocabulary((b"a\xc3", b"\xa9"), frozenset(), (), None, False, {}))
    first, second = filter_.push(TokenMark(0)), filter_.push(TokenMark(1))
    assert [(chunk.text, chunk.tokens) for chunk in first] == [("a", ())]
    assert [(chunk.text, [mark.token_id for mark in chunk.tokens]) for chunk in second] == [("é", [0, 1])]


def test_control_token_closes_an_unfinished_character() -> None:
    chunks = detokenize([0xF0, 0x9F, CONTROL, 0x41])
    assert [(chunk.text, chunk.special) for chunk in chunks] == [("�", None), ("", CONTROL), ("A", None)]


@pytest.mark.parametrize(("continues", "expected"), [(False, "the the"), (True, " the the")])
def test_first_space_is_dropped_unless_the_text_continues_a_prompt(continues: bool, expected: str) -> None:
    chunks = detokenize([259, 259], STRIPPING, continues=continues)
    assert "".join(chunk.text for chunk in chunks) == expected


def run_stop(stops: tuple[str, ...], chunks: list[TextChunk]) -> tuple[list[TextChunk], str | None]:
    matcher = StopMatcher(stops)
    out = [each for chunk in chunks for each in matcher.push(chunk)]
    return out + matcher.finish(), matcher.matched


def chunks_of(pieces: list[str]) -> list[TextChunk]:
    return [TextChunk(piece, (TokenMark(index),)) for index, piece in enumerate(pieces)]


def expected_cut(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The reference: the earliest end over all stops, the longest of those."""
    ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop and stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


@given(
    st.lists(st.text("ab<", max_size=4), max_size=12),
    st.lists(st.text("ab<", max_size=5), max_size=3).map(tuple),
)
def test_any_cut_stops_at_the_same_place(pieces: list[str], stops: tuple[str, ...]) -> None:
    text = "".join(pieces)
    expected = expected_cut(text, stops)
    for cut in (pieces, list(text), [text]):
        out, matched = run_stop(stops, chunks_of(cut))
        assert ("".join(chunk.text for chunk in out), matched) == expected
    out, matched = run_stop(stops, chunks_of(pieces))
    tokens = [mark.token_id for chunk in out for mark in chunk.tokens]
    assert tokens == list(range(len(tokens)))
    assert matched is not None or tokens == list(range(len(pieces)))


@given(st.lists(st.text("ab<", max_size=4), max_size=12), st.text("ab<", min_size=1, max_size=5))
def test_no_more_is_held_than_may_begin_the_stop(pieces: list[str], stop: str) -> None:
    matcher, given_text, out = StopMatcher((stop,)), "", ""
    for chunk in chunks_of(pieces):
        given_text += chunk.text
        out += "".join(each.text for each in matcher.push(chunk))
        if matcher.matched is None:
            held = given_text[len(out) :]
            longest = max(n for n in range(len(stop)) if given_text.endswith(stop[:n]))
            assert len(held) == longest


def test_tokens_inside_the_stop_are_dropped_and_one_across_its_start_stays() -> None:
    out, matched = run_stop(("</s>",), chunks_of(["Hi", "!<", "/s", ">", "more"]))
    assert matched == "</s>"
    assert [(chunk.text, [mark.token_id for mark in chunk.tokens]) for chunk in out] == [
        ("Hi", [0]),
        ("!", []),
        ("", [1]),
    ]


def test_control_tokens_keep_their_place_around_held_text() -> None:
    special = TextChunk("", (TokenMark(9),), special=9)
    out, matched = run_stop(("END",), [TextChunk("aE"), special, TextChunk("b")])
    assert matched is None
    assert [(chunk.text, chunk.special) for chunk in out] == [("a", None), ("E", None), ("", 9), ("b", None)]
    out, matched = run_stop(("END",), [TextChunk("a"), special, TextChunk("END")])
    assert (matched, [chunk.special for chunk in out]) == ("END", [None, 9])


def test_long_stops_cost_linear_time() -> None:
    matcher = StopMatcher(("a" * 5000 + "b", "a" * 4999 + "c"))
    for _ in range(20000):
        matcher.push(TextChunk("a"))
    assert sum(len(chunk.text) for chunk in matcher.finish()) == 5000


def test_marks_carry_their_log_probability() -> None:
    mark = TokenMark(65, -0.5, ((65, -0.5),))
    [chunk] = Detokenizer(BYTES).push(mark)
    assert chunk.tokens == (mark,)
    assert math.isnan(TokenMark(1).logprob)

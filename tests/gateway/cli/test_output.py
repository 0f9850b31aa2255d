"""Text for people: the words and widths that Ollama's command uses, and streamed word wrap."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cli.output import (
    WordWrap,
    human_bytes,
    human_count,
    human_time,
    parse_time,
    sections,
    table,
    width,
)

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1500, "1.5 KB"),
        (10_500, "10 KB"),
        (4_700_000_000, "4.7 GB"),
        (19_900_000_000, "19 GB"),
        (2 * 10**12, "2 TB"),
    ],
)
def test_bytes_are_decimal_with_one_digit_below_ten(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(7, "7"), (8300, "8.3K"), (268_098_176, "268.1M"), (4_300_000_000, "4.3B"), (7_000_000_000, "7B")],
)
def test_counts(count: int, text: str) -> None:
    assert human_count(count) == text


@pytest.mark.parametrize(
    ("ahead", "text"),
    [
        (timedelta(seconds=-0.2), "Less than a second ago"),
        (timedelta(seconds=-1), "1 second ago"),
        (timedelta(seconds=-59), "59 seconds ago"),
        (timedelta(seconds=-61), "About a minute ago"),
        (timedelta(minutes=4, seconds=59), "4 minutes from now"),
        (timedelta(hours=-1), "About an hour ago"),
        (timedelta(hours=-30), "30 hours ago"),
        (timedelta(days=-5), "5 days ago"),
        (timedelta(days=-16), "2 weeks ago"),
        (timedelta(days=-70), "2 months ago"),
        (timedelta(days=-800), "2 years ago"),
        (timedelta(days=200 * 365), "Forever"),
    ],
)
def test_times_in_their_largest_unit(ahead: timedelta, text: str) -> None:
    assert human_time(NOW + ahead, NOW, "Never") == text


def test_no_time_at_all() -> None:
    assert human_time(None, NOW, "Never") == "Never"
    assert human_time(datetime(1, 1, 1, tzinfo=UTC), NOW, "Never") == "Never"


def test_times_of_go_have_nine_digits_and_any_zone() -> None:
    assert parse_time("2026-11-20T14:00:00.123456789+02:00") == datetime(2026, 11, 20, 12, 0, 0, 123456, UTC)
    assert parse_time("2026-11-20T12:00:00Z") == NOW
    assert parse_time("2026-11-20T12:00:00.5Z") == NOW + timedelta(seconds=0.5)
    assert parse_time("yesterday") is None
    assert parse_time("") is None


def test_columns_line_up_whatever_the_script() -> None:
    assert table(("NAME", "ID"), [("bud:latest", "1"), ("狐", "2")]) == (
        "NAME          ID\nbud:latest    1\n狐            2\n"
    )
    assert width("e\u0301狐") == 3


def test_sections_indent_and_align() -> None:
    assert sections([("Model", [("a", "b"), ("long", "c")]), ("System", [("text",)])]) == (
        "  Model\n    a       b\n    long    c\n\n  System\n    text\n\n"
    )


def wrapped(text: str, columns: int, *cuts: int) -> str:
    wrap = WordWrap(columns)
    pieces = [text[i:j] for i, j in zip((0, *cuts), (*cuts, len(text)), strict=True)]
    return "".join(wrap.push(piece) for piece in pieces) + wrap.finish()


def test_words_wrap_and_line_breaks_stay() -> None:
    assert wrapped("the quick brown fox\njumps  over", 10) == "the quick\nbrown fox\njumps \nover".replace(
        " \n", "\n"
    )


def test_indentation_survives_and_long_words_are_cut() -> None:
    assert wrapped("    code", 20) == "    code"
    assert wrapped("abcdefghij", 4) == "abcd\nefgh\nij"


def test_wide_characters_take_two_columns_and_break_anywhere() -> None:
    assert wrapped("狐狸狐狸狐", 4) == "狐狸\n狐狸\n狐"


def test_no_columns_means_no_wrapping() -> None:
    assert wrapped("a very long line indeed", 0) == "a very long line indeed"


@settings(deadline=None)
@given(st.text(alphabet="ab \n狐\t", max_size=40), st.integers(3, 12), st.data())
def test_cutting_the_stream_changes_nothing(text: str, columns: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    assert wrapped(text, columns, *cuts) == wrapped(text, columns)
    assert "".join(wrapped(text, columns).split()) == "".join(text.split())
    assert all(
        width(line.replace("\t", " ").strip()) <= columns
        for line in wrapped(text, columns).splitlines()
        if line.strip()
    )

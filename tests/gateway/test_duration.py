"""Go durations: the forms Go reads, what it prints, and the bare numbers we read besides."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.duration import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("0", 0),
        ("0s", 0),
        ("-1s", -1),
        ("-1", -1),
        ("3600", 3600),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("+2ms", 0.002),
        ("1m0.5s", 60.5),
        ("24h0m0s", 86400),
        ("250ms", 0.25),
        ("3us", 3e-6),
        ("3µs", 3e-6),
    ],
)
def test_forms_that_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "5 m", "5m 3", "m", "1d", "5m3", "1h-2m", "nan", "--1s", "1e3s", "٥m", "9999999999h"]
)
def test_forms_that_are_refused_name_the_text(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (350_000_000, "350ms"),
        (1_234_567_890, "1.23456789s"),
        (300_000_000_000, "5m0s"),
        (3_600_000_000_000, "1h0m0s"),
        (5_403_200_000_000, "1h30m3.2s"),
        (-1_000_000_000, "-1s"),
        (100_000_000_000, "1m40s"),
    ],
)
def test_printed_as_go_prints(nanoseconds: int, text: str) -> None:
    assert format_duration(nanoseconds) == text


@settings(deadline=None)
@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_what_is_printed_is_read_back(nanoseconds: int) -> None:
    assert parse_duration(format_duration(nanoseconds)) == pytest.approx(
        nanoseconds / 1e9, rel=1e-12, abs=1e-12
    )

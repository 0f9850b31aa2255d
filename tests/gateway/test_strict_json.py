"""What the standard JSON decoder lets through, and we do not."""

from __future__ import annotations

import pytest

from gateway.strict_json import MAX_DEPTH, InvalidJSON, parse_object


def test_a_plain_object() -> None:
    assert parse_object('{"a": [1, 2.5, null, true, "é\\u00e9"]}'.encode()) == {
        "a": [1, 2.5, None, True, "éé"]
    }


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "missing request body"),
        (b"  ", "missing request body"),
        (b"[]", "must be a JSON object"),
        (b"{", "malformed JSON at line 1"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": Infinity}', "Infinity is not JSON"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": 1, "a": 2}', "appears twice"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\ud800": 1}', "surrogate"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", f"deeper than {MAX_DEPTH}"),
    ],
)
def test_what_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidJSON, match=reason):
        parse_object(body)


def test_the_deepest_that_is_allowed() -> None:
    depth = MAX_DEPTH - 2
    assert parse_object(b'{"a": ' + b"[" * depth + b"]" * depth + b"}")

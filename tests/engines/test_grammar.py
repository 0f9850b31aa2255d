"""Masks against outputs: whatever the masks allow, the finished text obeys the grammar."""

from __future__ import annotations

import json
import random
import re
import time

import numpy as np
import pytest

from engines.base import Grammar, InvalidRequest
from engines.grammar import GrammarCompiler, Matcher, check_grammar, compile_matcher, vocabulary_tokenizer
from engines.scripted import CONTROL_IDS, EOS, VOCABULARY
from modelfiles.vocabulary import Vocabulary

WORDS = (b'{"', b'":', b"true", b"false", b'"}', b"nam", b"name", b" ", b"ab", b"12")
TABLE = Vocabulary(
    token_bytes=(*VOCABULARY.token_bytes, *WORDS),
    control_token_ids=VOCABULARY.control_token_ids,
    end_token_ids=VOCABULARY.end_token_ids,
    bos_token_id=1,
    add_bos=True,
    names=VOCABULARY.names,
)
SIZE = 300  # the model's logits have more rows than the tokenizer has tokens
TOKENIZER = vocabulary_tokenizer(TABLE, SIZE)


def start(kind: str, source: str, after: tuple[int, ...] = ()) -> Matcher:
    grammar = Grammar(kind, source, after)  # type: ignore[arg-type]
    return Matcher(compile_matcher(TOKENIZER, grammar), grammar)


def allowed(matcher: Matcher) -> list[int]:
    row = np.zeros(-(-SIZE // 32), np.uint32)
    matcher.fill_mask(row)
    return np.nonzero(np.unpackbits(row.view(np.uint8), bitorder="little")[:SIZE])[0].tolist()


def random_text(matcher: Matcher, seed: int, limit: int = 400) -> str:
    """A random walk through the masks until the end token, or until nothing may follow."""
    chooser = random.Random(seed)
    text = b""
    for _ in range(limit):
        possible = allowed(matcher)
        assert possible
        assert max(possible) < len(TABLE.token_bytes)
        if set(possible) & set(TABLE.end_token_ids):
            break
        printable = [token for token in possible if 32 <= TABLE.token_bytes[token][0] < 127]
        token = chooser.choice(printable or possible)
        assert token not in TABLE.control_token_ids
        text += TABLE.token_bytes[token]
        if matcher.take(token):
            break
    else:
        pytest.fail(f"no end in sight after {text[:80]!r}")
    return text.decode()


def test_a_schema_is_obeyed() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 4},
            "age": {"enum": [1, 12]},
            "ok": {"type": "boolean"},
        },
        "required": ["name", "age", "ok"],
        "additionalProperties": False,
    }
    for seed in range(20):
        value = json.loads(random_text(start("json_schema", json.dumps(schema)), seed))
        assert set(value) == {"name", "age", "ok"}
        assert value["age"] in (1, 12)
        assert isinstance(value["ok"], bool)
        assert len(value["name"]) <= 4


def test_a_choice_and_a_regex_and_a_lark_grammar_are_obeyed() -> None:
    choices = ["yes", "no (maybe)", "ab+c", "äö"]
    assert {random_text(start("choice", json.dumps(choices)), seed) for seed in range(40)} <= set(choices)
    for seed in range(10):
        assert re.fullmatch("(ab|12){2,5}c", random_text(start("regex", "(ab|12){2,5}c"), seed))
        assert random_text(start("lark", 'start: "a" ("b" | "c") "."'), seed) in ("ab.", "ac.")


def test_json_is_an_object() -> None:
    first = {TABLE.token_bytes[token].strip()[:1] for token in allowed(start("json", ""))}
    assert first <= {b"{", b""}


def test_white_space_in_json_is_a_blank_or_a_line_with_its_indentation() -> None:
    def walk(text: bytes) -> bool:
        matcher = start("json", "")
        for byte in text:
            if TABLE.token_bytes.index(bytes([byte])) not in allowed(matcher):
                return False
            matcher.take(TABLE.token_bytes.index(bytes([byte])))
        return True

    pretty = json.dumps({"a": [1, {"b": None}]}, indent=4).encode()
    assert walk(pretty)
    assert walk(b'{"a": 1}')
    assert not walk(b'{  "a"')
    assert not walk(b"{\n\n")
    assert not walk(b"{\r")


def test_overlapping_one_of_is_taken_as_any_of() -> None:
    schema = {"oneOf": [{"const": "a"}, {"type": "string", "maxLength": 1}]}
    assert isinstance(json.loads(random_text(start("json_schema", json.dumps(schema)), 1)), str)


def test_when_all_is_said_only_an_end_token_may_follow() -> None:
    matcher = start("choice", '["ab"]')
    assert not matcher.take(TABLE.token_bytes.index(b"a")) or True
    possible = allowed(matcher)
    assert [TABLE.token_bytes[token] for token in possible] == [b"b"]
    finished = matcher.take(possible[0])
    assert finished or set(allowed(matcher)) == set(TABLE.end_token_ids)


def test_the_end_token_is_allowed_where_the_text_may_end() -> None:
    matcher = start("regex", "(ab)+")
    matcher.take(TABLE.token_bytes.index(b"ab"))
    assert EOS in allowed(matcher)


def test_a_grammar_waits_for_its_switch() -> None:
    end_of_thinking = CONTROL_IDS["</think>"]
    matcher = start("choice", '["ab"]', after=(end_of_thinking,))
    for token in (50, 60, EOS):
        assert len(allowed(matcher)) == SIZE
        assert not matcher.take(token)
    matcher.take(end_of_thinking)
    assert {TABLE.token_bytes[token] for token in allowed(matcher)} <= {b"a", b"ab"}


def test_a_token_against_the_mask_is_an_error_not_a_crash() -> None:
    matcher = start("choice", '["ab"]')
    with pytest.raises(InvalidRequest):
        matcher.take(TABLE.token_bytes.index(b"z"))
    with pytest.raises(InvalidRequest):
        allowed(matcher)


HOSTILE = [
    ("json_schema", "{", "not JSON"),
    ("json_schema", "[1]", "object"),
    ("json_schema", "[" * 100_000, "JSON"),
    ("json_schema", '{"type": "strange"}', "strange"),
    ("json_schema", '{"type": "object", "properties": {"a": {"type": "nope"}}}', "nope"),
    ("json_schema", '{"$ref": "#"}', "cannot be used"),
    ("json_schema", '{"$ref": "https://example.com/x"}', "cannot be used"),
    ("json_schema", '{"not": {"type": "string"}}', "not"),
    ("json_schema", "false", "cannot be used"),
    ("regex", "(", "cannot be used"),
    ("regex", "(" * 60_000 + ")" * 60_000, "cannot be used"),
    ("lark", "start: nothing", "nothing"),
    ("lark", "", "cannot be used"),
    ("choice", "{}", "list"),
    ("choice", "[]", "one or more"),
    ("choice", "[1]", "strings"),
    ("regex", "a" * (2 << 20), "longer than"),
]


@pytest.mark.parametrize(("kind", "source", "words"), HOSTILE, ids=lambda value: str(value)[:30])
def test_what_cannot_be_obeyed_is_refused_shortly_and_soon(kind: str, source: str, words: str) -> None:
    started = time.monotonic()
    with pytest.raises(InvalidRequest, match=re.escape(words)) as caught:
        check_grammar(Grammar(kind, source))  # type: ignore[arg-type]
    assert len(str(caught.value)) < 500
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json", ""),
        ("json_schema", "{}"),
        ("json_schema", "true"),
        ("json_schema", '{"type": "array", "items": {"type": "integer"}, "maxItems": 9223372036854775807}'),
        ("regex", "(a|b)*a(a|b){12}"),
        ("choice", '["yes", "no"]'),
    ],
)
def test_what_can_be_obeyed_passes(kind: str, source: str) -> None:
    check_grammar(Grammar(kind, source))  # type: ignore[arg-type]


def test_without_a_tokenizer_the_error_says_so() -> None:
    with pytest.raises(InvalidRequest, match="tokenizer"):
        GrammarCompiler((), 100).compile(Grammar("json", ""))

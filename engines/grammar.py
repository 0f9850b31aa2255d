"""Grammar masks: which tokens may come next so that the output matches a schema, regex, grammar or choice.

Built on llguidance, which never raises: every call here checks its error state and raises `InvalidRequest`.
Knows token ids and the bytes they stand for, not requests. `check_grammar` runs in the gateway's sandbox
workers before a request goes out; `GrammarCompiler` runs in the runner, off the engine's thread.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance
import numpy as np
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray

from engines.base import Grammar, GrammarKind, InvalidRequest
from engines.json_schema import fault_path, without_annotations
from modelfiles.files import ModelFile
from modelfiles.vocabulary import Vocabulary

MAX_SOURCE_BYTES = 1 << 20
MAX_ERROR_CHARS = 300
MAX_CHOICES = 10_000

JSON_OPTIONS: Any = {"coerce_one_of": True, "whitespace_pattern": r"(\x20|\x0A\x20{0,16}|\x0A\x09{0,8})?"}
"""Overlapping `oneOf` branches are taken as `anyOf`. White space is one blank, or a new line with its
indentation: a small model that may write more writes nothing else until its tokens are used up."""

ALL_ALLOWED = np.uint32(0xFFFFFFFF)


def check_grammar(grammar: Grammar) -> None:
    """Raises `InvalidRequest` when no runner could obey the grammar; says which part is wrong.

    Compiles it against an alphabet of single bytes and takes the first step, since some faults (a `$ref`
    that only refers to itself) show no earlier. May take long on hostile input: call it under a deadline.
    """
    try:
        _try_out(grammar)
    except InvalidRequest as error:
        short = len(grammar.source) <= MAX_SOURCE_BYTES
        if grammar.kind == "json_schema" and short and (path := _fault_path(grammar, str(error))):
            raise InvalidRequest(f"{error} (at {path})") from error
        raise


def _try_out(grammar: Grammar) -> None:
    matcher = compile_matcher(byte_tokenizer(), grammar)
    fill_next_token_bitmask(matcher, np.zeros((1, 9), np.int32))
    _check(matcher, grammar.kind)


def _fault_path(grammar: Grammar, error: str) -> str | None:
    """Where in a schema the fault lies; None when it is no schema at all."""

    def error_of(schema: Any) -> str | None:
        try:
            _try_out(Grammar("json_schema", json.dumps(schema)))
        except (InvalidRequest, RecursionError) as found:
            return _gist(str(found))
        return None

    try:
        schema = json.loads(grammar.source)
    except (ValueError, RecursionError):
        return None
    return fault_path(schema, _gist(error), error_of)


def _gist(error: str) -> str:
    """An error without the place where the library met it, which differs from part to part."""
    return error.split("\n", 1)[0]


def vocabulary_tokenizer(vocabulary: Vocabulary, size: int) -> llguidance.LLTokenizer:
    """The token table in llguidance's form, padded to the `size` of the model's logits."""
    return _tokenizer(
        vocabulary.token_bytes, vocabulary.control_token_ids, vocabulary.end_token_ids, size=size
    )


class Matcher:
    """Follows one sequence through its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, grammar: Grammar) -> None:
        self._matcher = matcher
        self._kind = grammar.kind
        self._switches = frozenset(grammar.after_token_ids)
        self._on = not self._switches

    def fill_mask(self, row: NDArray[np.uint32]) -> None:
        """Writes the bits of the tokens that may come next; all of them before the grammar is switched on."""
        if not self._on:
            row[:] = ALL_ALLOWED
            return
        row[:] = 0
        fill_next_token_bitmask(self._matcher, row.view(np.int32).reshape(1, -1))
        _check(self._matcher, self._kind)

    def take(self, token: int) -> bool:
        """Moves on by a token; True when the output is complete and nothing may follow."""
        if not self._on:
            self._on = token in self._switches
            return False
        self._matcher.consume_token(token)
        _check(self._matcher, self._kind)
        return bool(self._matcher.is_stopped())


class GrammarCompiler:
    """Makes matchers for one model, in any thread. Its tokenizer is read when the first grammar comes."""

    def __init__(self, files: Sequence[ModelFile], vocabulary_size: int) -> None:
        self._files = tuple(files)
        self._size = vocabulary_size
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> Matcher:
        """Raises `InvalidRequest` when the grammar is broken or the model has no tokenizer."""
        return Matcher(compile_matcher(self._open(), grammar), grammar)

    def _open(self) -> llguidance.LLTokenizer:
        with self._lock:  # two first requests at once must not read it twice
            if self._tokenizer is None:
                self._tokenizer = vocabulary_tokenizer(self._read(), self._size)
            return self._tokenizer

    def _read(self) -> Vocabulary:
        from modelfiles.tokenizer import TokenizerError, load_vocabulary

        try:
            return load_vocabulary(self._files)
        except TokenizerError as error:
            raise InvalidRequest(f"a grammar needs the model's tokenizer: {error}") from error


# Sources to llguidance's form


def _json(_: str) -> str:
    return _json_schema('{"type": "object"}')


def _json_schema(source: str) -> str:
    try:
        schema = without_annotations(json.loads(source))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the JSON schema is not JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        raise InvalidRequest("a JSON schema is an object")
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    return str(llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS))


def _regex(source: str) -> str:
    return str(llguidance.LLMatcher.grammar_from_regex(source))


def _lark(source: str) -> str:
    return str(llguidance.LLMatcher.grammar_from_lark(source))


def _choice(source: str) -> str:
    try:
        choices = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the choices are not a JSON list: {error}") from error
    if not isinstance(choices, list) or not choices or not all(isinstance(each, str) for each in choices):
        raise InvalidRequest("choices are a JSON list of one or more strings")
    if len(choices) > MAX_CHOICES:
        raise InvalidRequest(f"{len(choices)} choices; at most {MAX_CHOICES} are possible")
    return _regex("|".join(map(_escape, choices)))


def _escape(text: str) -> str:
    """A regex that matches `text` and nothing else."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


SOURCES = {"json": _json, "json_schema": _json_schema, "regex": _regex, "lark": _lark, "choice": _choice}


def compile_matcher(tokenizer: llguidance.LLTokenizer, grammar: Grammar) -> llguidance.LLMatcher:
    if len(grammar.source.encode()) > MAX_SOURCE_BYTES:
        raise InvalidRequest(f"the grammar is longer than {MAX_SOURCE_BYTES} bytes")
    try:
        compiled = SOURCES[grammar.kind](grammar.source)
    except ValueError as error:
        raise InvalidRequest(_message(grammar.kind, str(error))) from error
    matcher = llguidance.LLMatcher(tokenizer, compiled, log_level=0)
    _check(matcher, grammar.kind)
    return matcher


def _check(matcher: llguidance.LLMatcher, kind: GrammarKind) -> None:
    if matcher.is_error():
        raise InvalidRequest(_message(kind, matcher.get_error()))


NAMES: Mapping[GrammarKind, str] = {
    "json": "the JSON grammar",
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "lark": "the Lark grammar",
    "choice": "the list of choices",
}


def _message(kind: GrammarKind, error: str) -> str:
    """The head of an error: llguidance repeats the caller's whole source in it, and Rust's back traces."""
    head = error.strip().split("<state>", 1)[0].split("stack backtrace", 1)[0].strip()
    return f"{NAMES[kind]} cannot be used: {head[:MAX_ERROR_CHARS]}"


# Token tables to llguidance's form


@dataclass(frozen=True)
class _TokenSource:
    """What llguidance's wrapper asks of a tokenizer."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: int | None
    by_bytes: dict[bytes, int]
    longest: int

    def __call__(self, text: bytes) -> list[int]:
        """The longest token at each place: any encoding that agrees with `tokens` will do."""
        ids: list[int] = []
        at = 0
        while at < len(text):
            for length in range(min(self.longest, len(text) - at), 0, -1):
                found = self.by_bytes.get(text[at : at + length])
                if found is not None:
                    ids.append(found)
                    break
            else:
                length = 1  # a byte that no token has: it can be generated by nobody
            at += length
        return ids


def _tokenizer(
    token_bytes: Sequence[bytes], control: frozenset[int], ends: Sequence[int], *, size: int
) -> llguidance.LLTokenizer:
    plain = {text: i for i, text in reversed(list(enumerate(token_bytes))) if text and i not in control}
    tokens = [b"\xff" + text if i in control else text for i, text in enumerate(token_bytes[:size])]
    unused = range(len(tokens), size)
    tokens += [b"\xff<unused %d>" % i for i in unused]
    end_ids = [token for token in ends if token < size]
    if not end_ids:
        raise InvalidRequest("the model's tokenizer names no token that ends a text; grammars need one")
    source = _TokenSource(
        tokens, [*sorted(control), *unused], end_ids[0], None, plain, max(map(len, plain), default=1)
    )
    wrapper: Any = llguidance.TokenizerWrapper(source)
    return llguidance.LLTokenizer(wrapper, n_vocab=size, eos_token=end_ids, slices=[])


def byte_tokenizer() -> llguidance.LLTokenizer:
    return _tokenizer([*(bytes([i]) for i in range(256)), b"<end>"], frozenset({256}), [256], size=257)

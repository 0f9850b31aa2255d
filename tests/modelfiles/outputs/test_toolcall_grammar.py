"""Replies drawn at random from a tool grammar are calls that the parser reads and the schema admits."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import llguidance
import pytest
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from modelfiles.messages import ToolSpec
from modelfiles.outputs.parser import make_parser
from modelfiles.outputs.toolcall_grammar import NoSuchFunction, tool_grammar
from modelfiles.outputs.types import Content, Segment, TextChunk, ToolCallArguments, ToolCallStart
from tests.modelfiles.templates.conversations import TOOLS

MARKERS = ["<|tool_call>", "<tool_call|>", '<|"|>', "[TOOL_CALLS]", "<escape>", "<eos>"]
MARKERS += ["<start_function_call>", "<end_function_call>"]
NAMES = {marker: 256 + index for index, marker in enumerate(MARKERS)}
EOS = NAMES["<eos>"]
CONVENTIONS = ("json", "gemma3_tools", "llama3", "qwen", "qwen3_coder", "mistral", "gemma4", "functiongemma")
ANYTHING = ToolSpec(
    "anything", "", {"type": "object", "properties": {"x": {}, "y": {"anyOf": [{"type": "null"}]}}}
)
REFERRING = ToolSpec(
    "tree",
    "",
    {
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/node"}, "kind": {"enum": ["a", 1, True, None]}},
        "required": ["kind"],
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"label": {"type": ["string", "integer"]}, "next": {"$ref": "#/$defs/node"}},
            }
        },
    },
)


class Bytes:
    """A vocabulary of all bytes and the markers."""

    def __init__(self) -> None:
        self.tokens = [bytes([value]) for value in range(256)]
        self.tokens += [b"\xff" + name.encode() for name in NAMES]
        self.eos_token_id = EOS
        self.bos_token_id = None
        self.special_token_ids = list(NAMES.values())

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


@pytest.fixture(scope="module")
def tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))


TEXT_END = b"\n</parameter>\n"
"""What ends free text in Qwen3-Coder's calls; no drawing of single characters would ever come upon it."""


def draw(tokenizer: llguidance.LLTokenizer, source: str, seed: int) -> list[int] | None:
    """A random reply of the grammar, in ASCII, closing quotes and brackets soon; None if it got too long."""
    ends_text = json.dumps(TEXT_END.decode()) in source
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(source))
    assert not matcher.get_error(), matcher.get_error()
    chance = random.Random(seed)
    mask = allocate_token_bitmask(1, tokenizer.vocab_size)
    tokens: list[int] = []
    while len(tokens) < 3000 and not matcher.is_stopped():
        fill_next_token_bitmask(matcher, mask)
        allowed = [i for i in range(tokenizer.vocab_size) if mask[0, i // 32] >> (i % 32) & 1]
        if ends_text and len(allowed) > 200 and chance.random() < 0.2:
            assert matcher.consume_tokens(list(TEXT_END)), matcher.get_error()
            tokens += TEXT_END
            continue
        closing = [i for i in allowed if i in NAMES.values() or (i < 256 and chr(i) in '"}]')]
        printable = [i for i in allowed if 32 <= i < 127 or i > 255]
        pool = closing if closing and chance.random() < 0.4 else (printable or allowed)
        token = chance.choice(pool)
        assert matcher.consume_token(token), matcher.get_error()
        tokens.append(token)
    return tokens if matcher.is_stopped() else None


def parse(convention: str, tokens: list[int], tools: tuple[ToolSpec, ...]) -> list[Segment]:
    parser = make_parser(convention, names=NAMES, tools=tools)
    segments: list[Segment] = []
    pending = b""
    for token in tokens:
        if token > 255:
            segments += parser.push(TextChunk("", (), token)) if token != EOS else []
            continue
        pending += bytes([token])
        try:
            text = pending.decode()
        except UnicodeDecodeError:
            continue
        pending = b""
        segments += parser.push(TextChunk(text))
    return segments + parser.finish()


def calls_of(segments: list[Segment]) -> list[tuple[str, Any]]:
    names: list[str] = []
    arguments: list[str] = []
    for segment in segments:
        assert not isinstance(segment, Content) or not segment.chunk.text.strip(), segment
        if isinstance(segment, ToolCallStart):
            assert segment.call_index == len(names)
            names.append(segment.name)
            arguments.append("")
        elif isinstance(segment, ToolCallArguments):
            assert segment.call_index == len(names) - 1
            arguments[-1] += segment.text
    return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_reply_of_a_required_grammar_is_a_valid_call(
    convention: str, tokenizer: llguidance.LLTokenizer
) -> None:
    tools = (*TOOLS, ANYTHING, REFERRING)
    schemas = {tool.name: tool.parameters for tool in tools}
    kind, source = tool_grammar(convention, tools, required=True, token_ids=NAMES)
    assert kind == "lark"
    complete = 0
    for seed in range(12):
        tokens = draw(tokenizer, source, seed)
        if tokens is None:
            continue
        complete += 1
        calls = calls_of(parse(convention, tokens, tools))
        assert calls
        for name, arguments in calls:
            jsonschema.validate(arguments, schemas[name])
    assert complete >= 6


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_named_choice_without_parallel_calls_gives_that_one_call(
    convention: str, tokenizer: llguidance.LLTokenizer
) -> None:
    _, source = tool_grammar(convention, TOOLS, True, ("now",), parallel=False, token_ids=NAMES)
    tokens = draw(tokenizer, source, 1)
    assert tokens is not None
    calls = calls_of(parse(convention, tokens, TOOLS))
    assert [name for name, _ in calls] == ["now"]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("token_ids", [None, {}])
def test_grammars_compile_without_known_ids(
    convention: str, token_ids: dict[str, int] | None, tokenizer: llguidance.LLTokenizer
) -> None:
    for required in (True, False):
        _, source = tool_grammar(convention, TOOLS, required, token_ids=token_ids)
        matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(source))
        assert not matcher.get_error(), source


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_without_required_the_reply_may_be_text(convention: str, tokenizer: llguidance.LLTokenizer) -> None:
    _, source = tool_grammar(convention, TOOLS, required=False, token_ids=NAMES)
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(source))
    assert matcher.consume_tokens([*b"Just text.\n", EOS]), matcher.get_error()


def test_a_choice_of_no_known_function_names_those_on_offer() -> None:
    with pytest.raises(NoSuchFunction, match=r"'rain'.*get_weather, book, now"):
        tool_grammar("json", TOOLS, True, ("rain",))
    with pytest.raises(NoSuchFunction):
        tool_grammar("json", (), True)


COUNTED = ToolSpec(
    "counted",
    "",
    {
        "type": "object",
        "properties": {
            "word": {"type": "string", "minLength": 2, "maxLength": 4},
            "degrees": {"type": "integer", "minimum": -5, "maximum": 7},
            "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
            "none": {"type": "array", "maxItems": 0},
        },
        "required": ["word", "degrees", "list", "none"],
        "additionalProperties": False,
    },
)


@pytest.mark.parametrize("convention", sorted(set(CONVENTIONS) - {"qwen3_coder"}))  # its texts are free
def test_lengths_and_ranges_are_kept(convention: str, tokenizer: llguidance.LLTokenizer) -> None:
    _, source = tool_grammar(convention, (COUNTED,), True, parallel=False, token_ids=NAMES)
    for seed in range(3):
        tokens = draw(tokenizer, source, seed)
        assert tokens is not None
        ((_, arguments),) = calls_of(parse(convention, tokens, (COUNTED,)))
        jsonschema.validate(arguments, COUNTED.parameters)


def test_white_space_comes_one_blank_at_a_time(tokenizer: llguidance.LLTokenizer) -> None:
    _, source = tool_grammar("json", (COUNTED,), True, parallel=False, token_ids=NAMES)
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(source))
    assert matcher.consume_tokens([*b'{"name": "counted", "arguments": { "word": "ab"'])
    assert matcher.try_consume_tokens([*b"  "]) == 1

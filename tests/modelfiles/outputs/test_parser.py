"""Output parsers: what a model writes becomes answer, reasoning and calls, however it is cut into chunks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfiles.messages import ToolSpec
from modelfiles.outputs.parser import CONVENTIONS, UnknownConvention, convention_for, make_parser
from modelfiles.outputs.types import (
    Content,
    Segment,
    TextChunk,
    Thinking,
    TokenMark,
    ToolCallArguments,
    ToolCallStart,
)

MARKERS = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|tool_response>", "<eos>"]
MARKERS += ["[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "<|python_tag|>", "<escape>"]
MARKERS += ["<start_function_call>", "<end_function_call>"]
NAMES = {marker: 100 + index for index, marker in enumerate(MARKERS)}
TOOLS = (ToolSpec("f"), ToolSpec("g"), ToolSpec("get_weather"))

Pieces = list[str]


def chunks(pieces: Iterable[str], width: int = 0, seed: int = 0) -> list[TextChunk]:
    """Control tokens by id; text whole, in runs of `width`, or cut at random for a negative width."""
    chance = random.Random(seed)
    made: list[TextChunk] = []
    for piece in pieces:
        if piece in NAMES:
            made.append(TextChunk("", (), NAMES[piece]))
            continue
        while piece:
            size = width if width > 0 else (chance.randrange(1, 8) if width < 0 else len(piece))
            made.append(TextChunk(piece[:size]))
            piece = piece[size:]
    return made


def fold(segments: list[Segment]) -> list[tuple[str, str]]:
    """Segments with neighbours of one kind joined: (kind, text)."""
    folded: list[tuple[str, list[str]]] = []
    for segment in segments:
        if isinstance(segment, ToolCallStart):
            folded.append((f"call {segment.call_index}", [segment.name]))
            folded.append((f"arguments {segment.call_index}", []))
            continue
        if isinstance(segment, ToolCallArguments):
            kind, text = f"arguments {segment.call_index}", segment.text
        else:
            kind, text = type(segment).__name__.lower(), segment.chunk.text
        if folded and folded[-1][0] == kind:
            folded[-1][1].append(text)
        elif text:
            folded.append((kind, [text]))
    return [(kind, "".join(texts)) for kind, texts in folded]


def parse(
    convention: str, pieces: Pieces, cut: int = 0, seed: int = 0, **options: Any
) -> list[tuple[str, str]]:
    parser = make_parser(convention, names=NAMES, tools=options.pop("tools", TOOLS), **options)
    segments = [segment for chunk in chunks(pieces, cut, seed) for segment in parser.push(chunk)]
    return fold(segments + parser.finish())


def call(index: int, name: str, arguments: str) -> list[tuple[str, str]]:
    return [(f"call {index}", name), (f"arguments {index}", arguments)]


def content(text: str) -> list[tuple[str, str]]:
    return [("content", text)]


CASES: list[tuple[str, Pieces, list[tuple[str, str]]]] = [
    ("plain", ['<think>a</think> {"name": "f"}'], content('<think>a</think> {"name": "f"}')),
    ("plain", ["a", "<eos>", "b"], content("ab")),
    ("think_tags", ["<think>\n a \n\n</think>\n\n b "], [("thinking", "a"), ("content", "b ")]),
    ("think_tags", ["  <think>a</think>b"], [("thinking", "a"), ("content", "b")]),
    ("think_tags", ["<think></think>b"], content("b")),
    ("think_tags", ["<think>never closed <"], [("thinking", "never closed <")]),
    ("think_tags", ["b <think>a</think>"], content("b <think>a</think>")),
    ("think_tags", ["<thin"], content("<thin")),
    ("think_tags", ["<think>a</thin</think>b"], [("thinking", "a</thin"), ("content", "b")]),
    ("think_tags", ["<think>a</think>b</think>c"], [("thinking", "a"), ("content", "b</think>c")]),
    ("think_tags", ["  "], content("  ")),
    ("gemma4", ["Hi"], content("Hi")),
    ("gemma4", ["<|channel>", "thought\n", "a\n", "<channel|>", "b"], [("thinking", "a"), ("content", "b")]),
    ("gemma4", ["<|channel>", "thought\n", "<channel|>", "b"], content("b")),
    ("gemma4", ["<|channel>", "thought", "<channel|>", "b"], content("b")),
    ("gemma4", ["<|channel>", "final\n", "b", "<channel|>", "c"], content("bc")),
    (
        "gemma4",
        ["a", "<|channel>", "thought\nb", "<channel|>", "c"],
        [*content("a"), ("thinking", "b"), *content("c")],
    ),
    ("gemma4", ["<|channel>thought\nx<channel|>y"], content("<|channel>thought\nx<channel|>y")),
    (
        "gemma4",
        [
            "<|tool_call>",
            "call:f{a:",
            '<|"|>',
            'x"{},:\n\\',
            '<|"|>',
            ",b:-3,c:1.5,d:true,e:null}",
            "<tool_call|>",
        ],
        call(0, "f", '{"a":"x\\"{},:\\n\\\\","b":-3,"c":1.5,"d":true,"e":null}'),
    ),
    (
        "gemma4",
        [
            "<|tool_call>",
            "call:f{l:[1,[],{}],o:{k:[",
            '<|"|>',
            "",
            '<|"|>',
            "]}}",
            "<tool_call|>",
            "<|tool_response>",
        ],
        call(0, "f", '{"l":[1,[],{}],"o":{"k":[""]}}'),
    ),
    (
        "gemma4",
        ["ok ", "<|tool_call>", "call:f{}", "<tool_call|>", "<|tool_call>", "call:g{a:word}", "<tool_call|>"],
        [*content("ok"), *call(0, "f", "{}"), *call(1, "g", '{"a":"word"}')],
    ),
    (
        "gemma4",
        ["<|channel>", "thought\nhm", "<|tool_call>", "call:f{}", "<tool_call|>"],
        [("thinking", "hm"), *call(0, "f", "{}")],
    ),
    (
        "gemma4",
        ["<|tool_call>", "call:none{a:", '<|"|>', "x", '<|"|>', "}", "<tool_call|>"],
        content('<|tool_call>call:none{a:<|"|>x<|"|>}'),
    ),
    ("gemma4", ["<|tool_call>", "what"], content("<|tool_call>what")),
    ("gemma4", ["<|tool_call>", "call:f{a:1"], call(0, "f", '{"a":')),
    ("gemma4", ["<|tool_call>call:f{}<tool_call|>"], content("<|tool_call>call:f{}<tool_call|>")),
    (
        "functiongemma",
        ["<start_function_call>", "call:f{a:", "<escape>", "x", "<escape>", ",n:2}", "<end_function_call>"],
        call(0, "f", '{"a":"x","n":2}'),
    ),
    ("gemma3_tools", ['{"name": "f", "parameters": {"a": 1}}'], call(0, "f", '{"a": 1}')),
    ("gemma3_tools", ['```json\n{"name": "f", "parameters": {}}\n```'], call(0, "f", "{}")),
    (
        "gemma3_tools",
        ['```tool_code\n[{"name": "f"}, {"name": "g", "parameters": {"b": "]"}}]\n```\n'],
        [*call(0, "f", "{}"), *call(1, "g", '{"b": "]"}')],
    ),
    ("gemma3_tools", ["```python\nprint()\n```"], content("```python\nprint()\n```")),
    ("gemma3_tools", ['{"answer": 42}'], content('{"answer": 42}')),
    ("gemma3_tools", ['{"name": "none", "parameters": {}}'], content('{"name": "none", "parameters": {}}')),
    ("gemma3_tools", ['Use {"name": "f", "parameters": {}}'], content('Use {"name": "f", "parameters": {}}')),
    ("gemma3_tools", ["[1, 2]"], content("[1, 2]")),
    ("gemma3_tools", ["{"], content("{")),
    ("json", ['{"arguments": {"a": [1]}, "name": "f"}'], call(0, "f", '{"a": [1]}')),
    ("json", ['{"name": "f", "arguments": "{\\"a\\": 1}"}'], call(0, "f", '{"a": 1}')),
    ("json", ['{"name": "f", "arguments": null, "id": "x", "type": "function"}'], call(0, "f", "{}")),
    ("json", ['{"type": "function", "function": {"name": "f", "arguments": {}}}'], call(0, "f", "{}")),
    ("json", ['{"name": "f", "arguments": {"a": "x\ny"}}'], call(0, "f", '{"a": "x\\ny"}')),
    ("json", ['{"name": "f", "arguments": {}} So.'], [*call(0, "f", "{}"), *content("So.")]),
    (
        "llama3",
        ['{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}'],
        [*call(0, "f", "{}"), *call(1, "g", "{}")],
    ),
    ("llama3", ["<|python_tag|>", '{"name": "f", "parameters": {"a": 1}}'], call(0, "f", '{"a": 1}')),
    ("llama3", ["<|python_tag|>", "print(1)"], content("<|python_tag|>print(1)")),
    (
        "qwen",
        [
            "<think>hm</think>\n\nOk.\n<tool_call>\n",
            '{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>',
        ],
        [("thinking", "hm"), *content("Ok."), *call(0, "f", '{"a": "</tool_call>"}')],
    ),
    (
        "qwen",
        [
            '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
            '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
        ],
        [*call(0, "f", "{}"), *call(1, "g", "{}")],
    ),
    (
        "qwen",
        ['<tool_call>{"name": "none", "arguments": {}}</tool_call> bye'],
        content('<tool_call>{"name": "none", "arguments": {}}</tool_call> bye'),
    ),
    ("qwen", ["<tool_call>no json</tool_call>"], content("<tool_call>no json</tool_call>")),
    ("qwen", ['<tool_call>{"name": "f", "arguments": {"a": 1'], call(0, "f", '{"a": 1')),
    ("qwen", ['{"name": "f", "arguments": {}}'], content('{"name": "f", "arguments": {}}')),
    ("qwen", ["a <tool_cal b"], content("a <tool_cal b")),
    (
        "mistral",
        [
            "[TOOL_CALLS]",
            '[{"name": "f", "arguments": {"q": "]"}, "id": "abcdefghi"}, {"name": "g", "arguments": {}}]',
        ],
        [*call(0, "f", '{"q": "]"}'), *call(1, "g", "{}")],
    ),
    (
        "mistral",
        ["Ok", "[TOOL_CALLS]", "f", "[ARGS]", '{"q": 1}', "[TOOL_CALLS]", 'g{"q": 2}', "<eos>"],
        [*content("Ok"), *call(0, "f", '{"q": 1}'), *call(1, "g", '{"q": 2}')],
    ),
    ("mistral", ["[THINK]", "hm", "[/THINK]", "yes"], [("thinking", "hm"), *content("yes")]),
    ("mistral", ["[TOOL_CALLS] f[ARGS]{}"], content("[TOOL_CALLS] f[ARGS]{}")),
]


@pytest.mark.parametrize(("convention", "pieces", "expected"), CASES)
def test_what_a_model_writes(convention: str, pieces: Pieces, expected: list[tuple[str, str]]) -> None:
    assert parse(convention, pieces) == expected


@pytest.mark.parametrize(("convention", "pieces", "expected"), CASES)
def test_cuts_do_not_matter(convention: str, pieces: Pieces, expected: list[tuple[str, str]]) -> None:
    for width, seed in ((1, 0), (2, 0), (3, 0), *((-1, seed) for seed in range(5))):
        assert parse(convention, pieces, width, seed) == expected


@pytest.mark.parametrize(
    ("convention", "prompt", "pieces", "expected"),
    [
        ("think_tags", "x<think>\n", ["a</think>b"], [("thinking", "a"), ("content", "b")]),
        ("think_tags", "x<think>\n\n</think>\n\n", ["b"], content("b")),
        ("qwen", "x<think>", ["\na"], [("thinking", "a")]),
        (
            "gemma4",
            "<|turn>model\n<|channel>thought\n",
            ["a", "<channel|>", "b"],
            [("thinking", "a"), ("content", "b")],
        ),
        ("gemma4", "<|turn>model\n<|channel>thought\n<channel|>", ["b"], content("b")),
        ("mistral", "[THINK]", ["a", "[/THINK]", "b"], [("thinking", "a"), ("content", "b")]),
    ],
)
def test_a_prompt_may_end_inside_the_reasoning(
    convention: str, prompt: str, pieces: Pieces, expected: list[tuple[str, str]]
) -> None:
    assert parse(convention, pieces, 1, prompt=prompt) == expected


def test_without_tools_everything_is_content() -> None:
    text = '{"name": "f", "parameters": {}}'
    assert parse("llama3", [text], tools=()) == content(text)
    pieces = ["<|tool_call>", "call:f{}", "<tool_call|>"]
    assert parse("gemma4", pieces, tools=())[0] == ("content", "<|tool_call>call:f{}")


def test_thinking_is_separated_where_asked() -> None:
    assert parse("plain", ["<think>a</think>b"], think=True) == [("thinking", "a"), ("content", "b")]


def test_arguments_are_streamed_while_they_are_written() -> None:
    parser = make_parser("qwen", names={}, tools=TOOLS)
    assert parser.push(TextChunk('<tool_call>{"name": "f"')) == [ToolCallStart(0, "f")]
    assert parser.push(TextChunk(', "arguments": {"te')) == [ToolCallArguments(0, '{"te')]
    assert parser.push(TextChunk('xt": "lo')) == [ToolCallArguments(0, 'xt": "lo')]
    assert parser.push(TextChunk('ng"}}</tool_call>')) == [ToolCallArguments(0, 'ng"}')]
    assert parser.finish() == []


def test_gemma_arguments_become_json_while_they_are_written() -> None:
    parser = make_parser("gemma4", names=NAMES, tools=TOOLS)
    pieces = ["<|tool_call>", "call:f{te", "xt:", '<|"|>', 'a"', "b", '<|"|>', ",n:1", "}", "<tool_call|>"]
    texts = [[s.text for s in parser.push(c) if isinstance(s, ToolCallArguments)] for c in chunks(pieces)]
    assert texts == [[], ["{"], ['"text":'], ['"'], ['a\\"'], ["b"], ['"'], [',"n":'], ["1}"], []]


def test_large_arguments_pass_in_linear_time() -> None:
    text = json.dumps({"name": "f", "arguments": {"data": "x" * 200_000, "list": list(range(5000))}})
    got = parse("qwen", ["<tool_call>" + text + "</tool_call>"], 7)
    assert json.loads(got[1][1])["data"] == "x" * 200_000


def test_every_token_of_the_answer_rides_along_once() -> None:
    parser = make_parser("qwen", names={}, tools=TOOLS)
    pieces = ["<think>", "a", "</think>", "Hel", "lo <", "b>", " world"]
    marked = [TextChunk(piece, (TokenMark(index),)) for index, piece in enumerate(pieces)]
    segments = [s for chunk in marked for s in parser.push(chunk)] + parser.finish()
    tokens = [t.token_id for s in segments if isinstance(s, Content) for t in s.chunk.tokens]
    thought = [t.token_id for s in segments if isinstance(s, Thinking) for t in s.chunk.tokens]
    assert tokens == [3, 4, 5, 6]
    assert thought == [1]


ALPHABET = [
    *MARKERS,
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "call:f{",
    "}",
    "{",
    "]",
    "[",
    ",",
    ":",
]
ALPHABET += [
    '"name"',
    '"f"',
    '"arguments"',
    '{"name": "f", "arguments": {',
    "```",
    "json\n",
    " ",
    "\n",
    "a",
    "<",
    "é",
    "1",
]
PIECES = st.lists(st.sampled_from(ALPHABET), max_size=20)


@given(st.sampled_from(sorted(CONVENTIONS)), PIECES, st.integers(0, 99))
def test_any_output_is_cut_invariant_and_text_is_kept(convention: str, pieces: Pieces, seed: int) -> None:
    whole = parse(convention, pieces)
    assert parse(convention, pieces, 1) == whole
    assert parse(convention, pieces, -1, seed) == whole
    starts = [kind for kind, _ in whole if kind.startswith("call")]
    assert starts == [f"call {index}" for index in range(len(starts))]


@given(
    st.sampled_from(sorted(CONVENTIONS)),
    st.text(alphabet='abc {}[]"`<>|\n', max_size=40).filter(lambda text: text not in NAMES),
)
def test_text_without_calls_is_never_dropped(convention: str, text: str) -> None:
    assert "".join(part for _, part in parse(convention, [text])) == text


@pytest.mark.parametrize(
    ("template", "architecture", "expected"),
    [
        ("{{ '<|tool_call>' }}", "gemma4", "gemma4"),
        ("<start_of_turn>", "gemma3", "gemma3_tools"),
        ("<start_function_call>", "gemma3", "functiongemma"),
        ("[TOOL_CALLS]", "llama", "mistral"),
        ("<tool_call>", "qwen3", "qwen"),
        ("<|start_header_id|>", "llama", "llama3"),
        ("{{ .ToolCalls }}", "llama", "json"),
        ("<think></think>", "llama", "think_tags"),
        ("{{ .Prompt }}", "llama", "plain"),
    ],
)
def test_the_template_tells_the_convention(template: str, architecture: str, expected: str) -> None:
    assert convention_for(template, architecture) == expected


def test_an_unknown_convention_names_the_known() -> None:
    with pytest.raises(UnknownConvention, match="gemma4"):
        make_parser("nothing", names={})


READ = ToolSpec(
    "read",
    "",
    {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "lines": {"type": "array", "items": {"type": "integer"}},
            "count": {"type": ["integer", "null"]},
            "deep": {"type": "boolean"},
            "either": {"anyOf": [{"type": "string"}, {"type": "number"}]},
            "kind": {"enum": ["a", 1]},
            "options": {"type": "object"},
        },
    },
)


def tagged(name: str, *parameters: tuple[str, str]) -> str:
    """A call as Qwen3-Coder's template writes it."""
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


@pytest.mark.parametrize("cut", [0, 1, 3, -1])
@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (
            tagged("read", ("path", ' if a < b:\n\tprint("</x>")\n\n'), ("unknown", "5")),
            call(0, "read", json.dumps({"path": ' if a < b:\n\tprint("</x>")\n\n', "unknown": "5"})),
        ),
        (
            tagged("read", ("lines", "[1, 2]"), ("count", "None"), ("deep", "True"), ("options", '{"a": 1}')),
            call(0, "read", '{"lines": [1, 2], "count": null, "deep": true, "options": {"a": 1}}'),
        ),
        (
            tagged("read", ("either", "1.5"), ("kind", "1"), ("count", "many"), ("lines", "")),
            call(0, "read", '{"either": 1.5, "kind": 1, "count": "many", "lines": ""}'),
        ),
        (
            tagged("read", ("either", "NaN"), ("lines", "[Infinity]")),
            call(0, "read", '{"either": "NaN", "lines": "[Infinity]"}'),
        ),
        (tagged("f"), call(0, "f", "{}")),
        (
            "Let me look.\n" + tagged("f") + "\n" + tagged("g"),
            [("content", "Let me look."), *call(0, "f", "{}"), *call(1, "g", "{}")],
        ),
        ("<function=f>\n</function>\n</tool_call>", call(0, "f", "{}")),
        (
            "<tool_call><function=f></function><function=g></function></tool_call>done",
            [*call(0, "f", "{}"), *call(1, "g", "{}"), ("content", "done")],
        ),
        (tagged("nothing"), [("content", tagged("nothing"))]),
        ("Use <parameter=x> and </function>.", [("content", "Use <parameter=x> and </function>.")]),
    ],
)
def test_tagged_calls(pieces: str, expected: list[tuple[str, str]], cut: int) -> None:
    assert parse("qwen3_coder", [pieces], cut, tools=(*TOOLS, READ)) == expected


def test_text_of_a_tagged_call_is_passed_on_while_it_comes() -> None:
    parser = make_parser("qwen3_coder", names={}, tools=(READ,))
    begun = "<tool_call>\n<function=read>\n<parameter=path>\nfirst line"
    segments = parser.push(TextChunk(begun))
    assert fold(segments) == call(0, "read", '{"path": "first line')
    assert fold(parser.push(TextChunk("\n"))) == []
    assert fold(parser.push(TextChunk("x</par"))) == [("arguments 0", "\\nx")]

"""Modelfiles: the grammar, refusals with their place, round trips, and all that were found in the wild."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfiles.messages import Message, Role
from modelfiles.modelfile import Modelfile, ModelfileError

WHOLE = '''# a comment
FROM llama3.2:1b
from ./projector.gguf
PARAMETER temperature 0.7
parameter stop "<|im_end|>"
PARAMETER stop AI assistant:
TEMPLATE """{{ .System }}
# not a comment "quoted" {{ .Prompt }}"""
SYSTEM "You are
a \\"fox"
ADAPTER ./lora.gguf
MESSAGE user Is Toronto in Canada?
MESSAGE assistant """yes
it is"""
LICENSE MIT
LICENSE """
Apache
"""
REQUIRES v0.14.0
RENDERER gemma4
PARSER gemma4
DRAFT ./draft.gguf
'''


def test_every_instruction() -> None:
    parsed = Modelfile.parse(WHOLE)
    assert parsed == Modelfile(
        base="llama3.2:1b",
        bases=("./projector.gguf",),
        parameters=(("temperature", "0.7"), ("stop", "<|im_end|>"), ("stop", "AI assistant:")),
        template='{{ .System }}\n# not a comment "quoted" {{ .Prompt }}',
        system='You are\na \\"fox',
        adapters=("./lora.gguf",),
        messages=(Message.of("user", "Is Toronto in Canada?"), Message.of("assistant", "yes\nit is")),
        licenses=("MIT", "\nApache\n"),
        requires="0.14.0",
        renderer="gemma4",
        parser="gemma4",
        draft="./draft.gguf",
    )
    assert parsed.typed_parameters() == {"temperature": 0.7, "stop": ("<|im_end|>", "AI assistant:")}
    assert Modelfile.parse(parsed.render()) == parsed


@pytest.mark.parametrize(
    ("text", "system"),
    [
        ("SYSTEM  plain  ", "plain"),
        ('SYSTEM " kept "', " kept "),
        ('SYSTEM """ kept """', " kept "),
        ('SYSTEM """one"two"""', 'one"two'),
        ('SYSTEM """ends with a quote""""', 'ends with a quote"'),
        ("SYSTEM 'single'", "'single'"),
        ('SYSTEM a "b" c', 'a "b" c'),
        ("SYSTEM a # b", "a # b"),
        ("SYSTEM a\tb", "a\tb"),
        ("SYSTEM ", ""),
        ('SYSTEM ""', ""),
        ('SYSTEM """"""', ""),
        ('SYSTEM """a\r\nb"""\r\n', "a\r\nb"),
        ("SYSTEM a\rFROM y", "a"),
        ("system \tlower", "lower"),
        ("  SYSTEM indented", "indented"),
        ("SYSTEM a\x00\x07b\u200d\u3000c", "ab\u200d\u3000c"),
        ("SYSTEM first\nSYSTEM second", "second"),
    ],
)
def test_values(text: str, system: str) -> None:
    assert Modelfile.parse("FROM x\n" + text).system == system


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_encodings(encoding: str) -> None:
    text = "FROM x\nSYSTEM Füchse\n"
    data = text.encode(encoding)
    if encoding == "utf-16-be":
        data = b"\xfe\xff" + data
    assert Modelfile.parse(data) == Modelfile("x", system="Füchse")
    assert Modelfile.parse("\ufeff" + text).base == "x"


def test_bad_utf8_is_replaced() -> None:
    assert Modelfile.parse(b"FROM x\nSYSTEM a\xffb").system == "a\ufffdb"


COMMANDS = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", "renderer",'
    ' "parser", "parameter", "message", or "requires"'
)


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        ("", "no FROM line", 0, 0),
        ("# FROM x", "no FROM line", 0, 0),
        ("FROM x\nFOO bar", COMMANDS, 2, 1),
        ("FROM x\n  SYSTEM: hi", COMMANDS, 2, 3),
        ('FROM x\r\n\r\n"""', COMMANDS, 3, 1),
        ("FROM x\nSYSTEM\nhi", COMMANDS, 2, 1),
        ("FROM", "unexpected EOF: FROM has no value", 1, 1),
        ("FROM ", "FROM needs a name or a path", 1, 1),
        ('FROM x\nSYSTEM """hi', "unexpected EOF: the quote that SYSTEM opens here never closes", 2, 8),
        ('FROM x\nSYSTEM "hi\nthere', "unexpected EOF: the quote that SYSTEM opens here never closes", 2, 8),
        ("FROM x\nPARAMETER temperature", "unexpected EOF: PARAMETER temperature has no value", 2, 1),
        ("FROM x\nPARAMETER top-k 3", "unexpected EOF: PARAMETER top has no value", 2, 1),
        ("FROM x\nPARAMETER heat 1", "unknown parameter 'heat'", 2, 1),
        ("FROM x\nPARAMETER num_ctx 4k", "invalid int value [4k]", 2, 1),
        ("FROM x\nPARAMETER num_ctx 4096 # big", "invalid int value [4096 # big]", 2, 1),
        ("FROM x\nPARAMETER top_p high", "invalid float value [high]", 2, 1),
        ("FROM x\nPARAMETER use_mmap maybe", "invalid bool value [maybe]", 2, 1),
        (
            "FROM x\nMESSAGE tool hi",
            'message role must be one of "system", "user", or "assistant"',
            2,
            1,
        ),
        ("FROM x\nMESSAGE User hi", 'message role must be one of "system", "user", or "assistant"', 2, 1),
        (
            "FROM x\nADAPTER a.gguf\n ADAPTER b.gguf",
            "only one adapter is currently supported; give each its own model on one base",
            3,
            2,
        ),
        ("FROM x\nREQUIRES new", "requires must be a valid semver (e.g. 0.14.0)", 2, 1),
    ],
)
def test_refusals_name_their_place(text: str, message: str, line: int, column: int) -> None:
    with pytest.raises(ModelfileError) as caught:
        Modelfile.parse(text)
    assert (caught.value.message, caught.value.line, caught.value.column) == (message, line, column)
    assert str(caught.value) == (f"(line {line}, column {column}): {message}" if line else message)


def test_deprecated_parameters_are_kept_in_the_text_and_have_no_value() -> None:
    parsed = Modelfile.parse("FROM x\nPARAMETER mirostat 1\nPARAMETER low_vram whatever")
    assert parsed.parameters == (("mirostat", "1"), ("low_vram", "whatever"))
    assert parsed.typed_parameters() == {}


TEXT = st.text(st.sampled_from('ab "\n\r\t#é🦊'), max_size=12)
NAME = st.text(st.sampled_from("ab:/.-é"), min_size=1, max_size=8)
ROLE: st.SearchStrategy[Role] = st.sampled_from(("system", "user", "assistant"))
PARAMETER = st.one_of(
    st.tuples(st.just("stop"), TEXT),
    st.tuples(st.just("num_ctx"), st.integers(-(1 << 31), 1 << 31).map(str)),
    st.tuples(st.just("temperature"), st.floats(0, 2).map(str)),
)
MODELFILES = st.builds(
    Modelfile,
    base=NAME,
    bases=st.lists(NAME, max_size=2).map(tuple),
    parameters=st.lists(PARAMETER, max_size=3).map(tuple),
    template=st.none() | TEXT,
    system=st.none() | TEXT,
    adapters=st.lists(NAME, max_size=1).map(tuple),
    messages=st.lists(st.builds(Message.of, ROLE, TEXT), max_size=3).map(tuple),
    licenses=st.lists(TEXT, max_size=2).map(tuple),
    requires=st.none() | st.sampled_from(["1.2.3", "0.1"]),
    renderer=st.none() | NAME,
    parser=st.none() | NAME,
    draft=st.none() | NAME,
)


@given(MODELFILES)
def test_what_is_written_reads_back(modelfile: Modelfile) -> None:
    try:
        text = modelfile.render()
    except ModelfileError as error:
        assert "cannot be written" in error.message
        return
    assert Modelfile.parse(text) == modelfile
    assert Modelfile.parse(text.encode()).render() == text


@given(st.text(st.sampled_from('FROM SYTEPARM\n\t\r"# xé')))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        parsed = Modelfile.parse("FROM x\n" + text)
    except ModelfileError:
        return
    assert Modelfile.parse(parsed.render()) == parsed


def test_the_one_kind_of_value_the_grammar_has_no_notation_for() -> None:
    with pytest.raises(ModelfileError, match="cannot be written in a Modelfile"):
        Modelfile("x", system='a\nb"""\nc').render()


@pytest.mark.parametrize("text", ["PARAMETER stop a\n" * 20000, 'SYSTEM """' + "\n" * 300000, "#" * 300000])
def test_long_files_take_linear_time(text: str) -> None:
    start = time.perf_counter()
    with contextlib.suppress(ModelfileError):
        Modelfile.parse("FROM x\n" + text)
    assert time.perf_counter() - start < 2


REFUSED = {
    "031.Modelfile": (1, 1, "a snapshot with a YAML header, no Modelfile"),
    "073.Modelfile": (4, 1, "the text of SYSTEM begins on the line below it"),
    "075.Modelfile": (16, 1, "num_ctx is `<add the context size>`"),
    "080.Modelfile": (57, 1, "REQUIRES `>= 0.1.24` is no version"),
}
"""The files that Ollama refuses too: line, column and why."""


def in_the_wild(shared_data: Path) -> list[Path]:
    return sorted((shared_data / "modelfiles").glob("*.Modelfile"))


def test_modelfiles_in_the_wild(shared_data: Path) -> None:
    paths = in_the_wild(shared_data)
    assert len(paths) >= 80
    for path in paths:
        if path.name in REFUSED:
            with pytest.raises(ModelfileError) as caught:
                Modelfile.parse(path.read_bytes())
            assert (caught.value.line, caught.value.column) == REFUSED[path.name][:2], path.name
            continue
        parsed = Modelfile.parse(path.read_bytes())
        assert Modelfile.parse(parsed.render()) == parsed, path.name
        assert_says_what_the_text_says(parsed, path.read_bytes().decode("utf-8-sig"))


def assert_says_what_the_text_says(parsed: Modelfile, text: str) -> None:
    """Every value stands in the file, and every instruction line of the file has its value."""
    values = [parsed.base, *parsed.bases, *parsed.adapters, *parsed.licenses, parsed.system, parsed.template]
    values += [value for _, value in parsed.parameters] + [message.text for message in parsed.messages]
    assert all(value in text for value in values if value is not None)
    outside = "\n" + text
    for value in sorted((value for value in values if value and "\n" in value), key=len, reverse=True):
        outside = outside.replace(value, "", 1)
    lines = [line.split(None, 1)[0].upper() for line in outside.splitlines() if line.split()]
    assert lines.count("PARAMETER") == len(parsed.parameters)
    assert lines.count("MESSAGE") == len(parsed.messages)
    assert lines.count("FROM") == 1 + len(parsed.bases)
    assert lines.count("LICENSE") == len(parsed.licenses)
    assert ("SYSTEM" in lines) == (parsed.system is not None)
    assert ("TEMPLATE" in lines) == (parsed.template is not None)

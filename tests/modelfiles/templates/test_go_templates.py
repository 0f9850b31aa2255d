"""Go templates as models use them: Ollama's own with their prompts, its three ways to run one, limits."""

from __future__ import annotations

import contextlib
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfiles.messages import Message, TextPart, ToolCall
from modelfiles.templates.chat import (
    ChatPrompt,
    TemplateSource,
    check_template,
    render_chat,
    render_completion,
)
from modelfiles.templates.errors import TemplateError, TemplateLimitExceeded, TemplateSyntaxError
from modelfiles.templates.go_chat import as_go
from modelfiles.templates.golang import parse_go
from modelfiles.templates.golang_eval import execute
from tests.modelfiles.templates.conversations import CALL, SECOND_CALL, WEATHER, assistant, result, user

SYSTEM = Message.of("system", "You are a helpful assistant.")
TURNS = {
    "user": [user("Hello, how are you?"), user("I'd like to show off how chat templating works!")],
    "assistant": [assistant("I'm doing great. How can I help you today?")],
    "system": [SYSTEM],
}


def conversation(roles: str) -> tuple[Message, ...]:
    """`user-assistant-user` as the messages that Ollama's expected prompts were made from."""
    left = {role: list(turns) for role, turns in TURNS.items()}
    return tuple(left[role].pop(0) for role in roles.split("-"))


def render(text: str, *messages: Message, **fields: Any) -> str:
    return render_chat(ChatPrompt(TemplateSource("go", text), messages, **fields))


def test_ollamas_templates_give_the_expected_prompts(shared_data: Path) -> None:
    folder = shared_data / "templates" / "ollama"
    expected = sorted(path for path in (folder / "testdata").glob("*/*"))
    different = [
        f"{path.parent.name}/{path.name}"
        for path in expected
        if render((folder / path.parent.name).read_text(), *conversation(path.name)) != path.read_text()
    ]
    assert len(expected) >= 39
    assert not different


def test_every_template_of_ollama_parses(shared_data: Path) -> None:
    found = sorted((shared_data / "templates" / "ollama").glob("*.gotmpl"))
    assert len(found) >= 13
    for path in found:
        check_template(TemplateSource("go", path.read_text()))


def evaluate(text: str, data: Any = None) -> str:
    return execute(parse_go(text), as_go(data))


def test_turns_are_merged_and_system_text_is_collected() -> None:
    template = "{{ .System }}|{{ range .Messages }}<{{ .Role }}:{{ .Content }}>{{ end }}"
    system = Message.of("system", "s1")
    later = Message.of("developer", "s2")
    tool = Message("tool", (TextPart("t"),), name="f")
    got = render(template, system, user("a"), user("b"), assistant("c"), later, tool, tool)
    assert got == "s1\n\ns2|<system:s1><user:a\n\nb><assistant:c><system:s2><tool:t><tool:t>"


def test_the_older_form_runs_once_for_every_exchange() -> None:
    template = "{{ if .System }}[{{ .System }}]{{ end }}Q:{{ .Prompt }} A:{{ .Response }};"
    messages = (SYSTEM, user("one"), assistant("two"), user("three"))
    assert render(template, *messages) == "[You are a helpful assistant.]Q:one A:two;Q:three A:"
    assert render(template, user("one"), assistant("tw")) == "Q:one A:tw"
    assert render(template) == "Q: A:"


def test_the_older_form_is_cut_after_the_response_wherever_it_stands() -> None:
    assert render("{{ if .Prompt }}<{{ .Prompt }}>{{ .Response }}</s>{{ end }}!", user("a")) == "<a>"
    assert render("{{ .Prompt }}{{ if .Response }}-{{ .Response }}{{ end }}end", user("a")) == "a"
    assert render("{{ .Prompt }}", user("a"), assistant("b"), user("c")) == "abc"


def test_thinking_variables() -> None:
    template = "{{ .Messages }}{{ .IsThinkSet }} {{ .Think }} {{ .ThinkLevel }}"
    assert render(template, think=None) == "[]false false "
    assert render(template, think=False) == "[]true false "
    assert render(template, think="high") == "[]true true high"


def test_tools_calls_and_results() -> None:
    template = (
        "{{ range .Messages }}{{ .Role }}:{{ .ToolName }}{{ .ToolCallID }}"
        "{{ range .ToolCalls }}{{ .Function.Index }}{{ .Function.Name }}({{ .Function.Arguments }}){{ end }};"
        "{{ end }}"
    )
    got = render(template, user("x"), assistant("", CALL, SECOND_CALL), result(CALL, "5"))
    assert got == (
        'user:;assistant:0get_weather({"city":"Köln","days":[1,2],"unit":"C"})'
        '1book({"flag":true,"free":{},"trip":{"from":"a \\"b\\"","to":null}});tool:get_weathercall00001;'
    )


def test_tools_print_as_json_and_by_property() -> None:
    tools = (WEATHER,)
    assert render("{{ .Messages }}{{ .Tools }}", tools=tools) == (
        '[][{"type":"function","function":{"name":"get_weather","description":"Weather at a place",'
        '"parameters":{"type":"object","required":["city"],"properties":{"city":{"type":"string","description":"Where"},'
        '"days":{"type":"array","items":{"type":"integer"},"description":"Which days"},'
        '"unit":{"type":"string","enum":["C","F"]}}}}}]'
    )
    each = (
        "{{ range .Tools }}{{ range $n, $p := .Function.Parameters.Properties }}"
        "{{ $n }}={{ $p.Type }} {{ end }}{{ end }}"
    )
    assert render(each + "{{ .Messages }}", tools=tools) == "city=string days=array unit=string []"
    types = each.replace("$p.Type }}", "toTypeScriptType $p }}")
    assert render(types + "{{ .Messages }}", tools=tools) == "city=string days=any[] unit=string []"


def test_infill_needs_a_place_for_the_suffix() -> None:
    text = "{{ if .Suffix }}<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>{{ else }}{{ .Prompt }}{{ end }}"
    template = TemplateSource("go", text)
    assert render_completion(template, "", "def f(", "return 1") == "<PRE>def f(<SUF>return 1<MID>"
    assert render_completion(template, "", "def f(") == "def f("
    for kind, text in (("go", "{{ .Prompt }}"), ("jinja", "{{ messages[0].content }}")):
        with pytest.raises(TemplateError, match="insert"):
            render_completion(TemplateSource(kind, text), "", "a", "b")  # type: ignore[arg-type]


def test_dates() -> None:
    today = datetime.date.today()
    assert evaluate("{{ currentDate }} {{ currentDate 1 2 }}") == f"{today} {today}"
    assert evaluate("{{ yesterdayDate }}") == str(today - datetime.timedelta(days=1))


FAULTS = {
    "{{": ("unclosed action", 1),
    "\n{{ .a": ("unclosed action", 2),
    "{{ if .a }}": ("unexpected EOF", 1),
    "a\nb\n{{ nosuch .a }}": ("function 'nosuch' not defined", 3),
    "{{ $x }}": ("undefined variable", 1),
    "{{ break }}": ("outside", 1),
    "\n{{ end }}": ("unexpected", 2),
    "{{ (.a }}": ("paren", 1),
    '{{ "a }}': ("unterminated quoted string", 1),
}


@pytest.mark.parametrize("text", FAULTS)
def test_syntax_errors_name_the_line(text: str) -> None:
    message, line = FAULTS[text]
    with pytest.raises(TemplateSyntaxError, match=message) as caught:
        check_template(TemplateSource("go", text))
    assert caught.value.line == line


def test_faults_at_run_time_name_the_line() -> None:
    for text, message in (
        ("\n{{ .a.b }}", "nil pointer evaluating"),
        ("\n{{ index .l 9 }}", "error calling index: index out of range: 9"),
        ("\n{{ if lt 1 `a` }}{{ end }}", "incompatible types for comparison: int and string"),
        ("\n{{ template `x` }}", "not defined"),
        ("\n{{ len 3 }}", "len of type int"),
    ):
        with pytest.raises(TemplateError, match=message) as caught:
            evaluate(text, {"l": [1]})
        assert caught.value.line == 2


BOMBS = (
    "{{ range 1000000000 }}x{{ end }}",
    "{{ range 100000 }}{{ range 100000 }}{{ end }}{{ end }}",
    '{{ define "a" }}{{ template "a" }}{{ end }}{{ template "a" }}',
    '{{ define "a" }}{{ template "a" }}{{ template "a" }}{{ end }}{{ template "a" }}',
    '{{ printf "%999999999d" 1 }}',
    '{{ printf "%*d" 999999999 1 }}',
    '{{ printf "%.999999999f" 1.0 }}',
    '{{ $x := "xxxxxxxxxx" }}{{ range 99 }}{{ $x = print $x $x }}{{ end }}{{ $x }}',
    '{{ $x := "xxxxxxxxxx" }}{{ range 99 }}{{ $x = printf "%s%s" $x $x }}{{ end }}{{ $x }}',
    '{{ $x := "\\"<\\"" }}{{ range 99 }}{{ $x = json $x }}{{ end }}{{ len $x }}',
    "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "{{ if 1 }}" * 999 + "{{ end }}" * 999,
    "{{ if 0 }}" + "{{ else if 0 }}" * 999 + "{{ end }}",
)


@pytest.mark.slow
@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_bombs_are_refused(text: str) -> None:
    with pytest.raises(TemplateLimitExceeded):
        evaluate(text)


@given(
    st.text(alphabet="{}-/*.$:=|()\"'`\\ \nabrangeifedlsot019é", max_size=60).map(lambda text: "{{" + text)
)
def test_no_source_fails_but_as_a_template_error(text: str) -> None:
    with contextlib.suppress(TemplateError):
        evaluate(text, {"a": [1, {"b": "x"}]})


@given(st.text())
def test_text_outside_actions_is_itself(text: str) -> None:
    if "{{" not in text:
        assert evaluate(text) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON)
def test_json_output_reads_back(value: Any) -> None:
    assert json.loads(evaluate("{{ json . }}", value), parse_int=float) == value


def test_long_branches_of_real_templates_fit() -> None:
    calls = tuple(ToolCall(str(i), "get_weather", "{}") for i in range(500))
    assert (
        render("{{ range .Messages }}{{ range .ToolCalls }}x{{ end }}{{ end }}", assistant("", *calls))
        == "x" * 500
    )

"""From a conversation to a prompt: what every template gets, what is refused, what is made lenient."""

from __future__ import annotations

import json

import msgspec
import pytest

from modelfiles.messages import MediaPart, Message, TextPart, ToolCall
from modelfiles.templates.chat import (
    ChatPrompt,
    TemplateError,
    TemplateRefused,
    TemplateSource,
    TemplateSyntaxError,
    UnsupportedMedia,
    check_template,
    render_chat,
    render_completion,
    unguard,
)
from tests.modelfiles.templates.conversations import CALL, WEATHER, assistant, result, user

JSON = "{{ messages | tojson }}"
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('must alternate') }}{% endif %}<{{ m.role }}:{{ m.content }}>{% endfor %}"
)


def render(text: str, *messages: Message, **fields: object) -> str:
    return render_chat(ChatPrompt(TemplateSource("jinja", text), messages, **fields))  # type: ignore[arg-type]


def test_messages_are_passed_as_hugging_face_passes_them() -> None:
    turns = (
        user("hi"),
        assistant("", CALL, thinking="hm"),
        result(CALL, "5"),
        Message.of("developer", "be nice"),
        Message("user", (TextPart("a"), TextPart("b"))),
    )
    assert json.loads(render(JSON, *turns)) == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "reasoning": "hm",
            "thinking": "hm",
            "tool_calls": [
                {
                    "id": "call00001",
                    "type": "function",
                    "function": {
                        "name": "get_weather",
                        "arguments": {"city": "Köln", "days": [1, 2], "unit": "C"},
                    },
                }
            ],
        },
        {"role": "tool", "content": "5", "tool_call_id": "call00001", "name": "get_weather"},
        {"role": "system", "content": "be nice"},
        {"role": "user", "content": "ab"},
    ]


def test_templates_that_know_developers_get_them() -> None:
    assert render("{# developer #}{{ messages[0].role }}", Message.of("developer", "x")) == "developer"


def test_tools_are_none_when_there_are_none() -> None:
    assert render("{{ tools is none }}") == "True"
    function = json.loads(render("{{ tools | tojson }}", tools=(WEATHER,)))[0]["function"]
    assert function == {
        "name": "get_weather",
        "description": WEATHER.description,
        "parameters": WEATHER.parameters,
    }


@pytest.mark.parametrize(
    ("think", "expected"),
    [
        (None, "||"),
        (True, "True|True|"),
        (False, "False|False|"),
        ("low", "True|True|low"),
        ("none", "False|False|none"),
    ],
)
def test_thinking_has_the_names_templates_read(think: bool | str | None, expected: str) -> None:
    assert render("{{ enable_thinking }}|{{ thinking }}|{{ reasoning_effort }}", think=think) == expected


def test_further_variables_reach_the_template_but_replace_nothing() -> None:
    assert render("{{ date_string }}", kwargs={"date_string": "today"}) == "today"
    for name in ("messages", "tools", "bos_token", "add_generation_prompt"):
        with pytest.raises(TemplateError, match=name):
            render("x", kwargs={name: 1})


def test_images_and_sounds_are_refused() -> None:
    for template in ("{{ messages }}", "x"):
        with pytest.raises(UnsupportedMedia, match="takes no image"):
            render(template, Message("user", (MediaPart("image", "image/png", b""),)))


def test_a_last_assistant_turn_can_be_left_open() -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    assert render(template, user("a"), assistant("b "), continue_final=True) == "<user>a</s><assistant>b"
    assert render(template, user("a"), assistant("b ")) == "<user>a</s><assistant>b</s><assistant>"
    with pytest.raises(TemplateError, match="cannot be continued"):
        render("{{ messages[0].content }}", user("a"), assistant("b"), continue_final=True)


def test_what_a_strict_template_refuses_is_folded() -> None:
    system = Message.of("system", "S")
    assert render(STRICT, system, user("a"), user("b")) == "<user:S\n\na\n\nb>"
    assert render(STRICT, system) == "<user:S>"
    with pytest.raises(TemplateRefused, match="must alternate"):
        render(STRICT, assistant("a"))


def test_templates_that_want_arguments_as_text_get_them() -> None:
    template = "{% for c in messages[0].tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}"
    assert render(template, assistant("", ToolCall("1", "f", '{"a": 1}'))) == 'f{"a": 1}'
    with pytest.raises(TemplateError, match="line 1: UndefinedError"):
        render("{{ nothing.at.all }}")


def test_arguments_that_are_no_object_stay_text() -> None:
    calls = (ToolCall("1", "f", "[1"), ToolCall("2", "f", ""), ToolCall("3", "f", "3"))
    template = "{% for c in messages[0].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
    assert render(template, assistant("", *calls)) == '"[1"{}"3"'


def test_a_completion_is_a_user_turn_with_an_optional_system_turn() -> None:
    template = TemplateSource("jinja", "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}")
    assert render_completion(template, "s", "p") == "system=s;user=p;"
    assert render_completion(template, "", "p") == "user=p;"
    go = TemplateSource("go", "{{ if .System }}{{ .System }} {{ end }}{{ .Prompt }}")
    assert render_completion(go, "s", "p") == "s p"


def test_checking_a_template() -> None:
    check_template(TemplateSource("go", "{{ .Prompt }}"))
    check_template(TemplateSource("jinja", "{{ messages }}"))
    for kind in ("go", "jinja"):
        with pytest.raises(TemplateSyntaxError) as caught:
            check_template(TemplateSource(kind, "\n{{ if }}x" if kind == "go" else "\n{% if %}"))
        assert caught.value.line == 2


def test_the_values_cross_between_processes() -> None:
    source = TemplateSource("go", "{{ .Prompt }}")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(source), type=TemplateSource) == source
    assert msgspec.msgpack.encode(ChatPrompt(source, (user("a"),), (WEATHER,)))


def test_guarded_text_survives_ascii_json() -> None:
    rendered = render(
        "{{ messages[0].content | tojson(ensure_ascii=true) }}", user("é<a>\ufdd0"), control_strings=("<a>",)
    )
    assert unguard(rendered) == '"\\u00e9<a>\ufdd0"'

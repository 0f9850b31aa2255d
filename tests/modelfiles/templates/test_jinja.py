"""The Jinja sandbox: what Hugging Face templates rely on works, what a hostile one tries fails at once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from modelfiles.templates.errors import (
    MAX_OUTPUT,
    MAX_SOURCE,
    TemplateError,
    TemplateLimitExceeded,
    TemplateRefused,
    TemplateSyntaxError,
)
from modelfiles.templates.jinja import check_jinja, render_jinja

VALUES: dict[str, Any] = {
    "text": "a<b>é",
    "items": [1, 2, 3],
    "map": {"b": 1, "a": {"c": None}},
    "yes": True,
    "message": {"role": "user", "content": "hi"},
}

WORKS = {
    "{{ text | tojson }}": '"a<b>é"',
    "{{ map | tojson(indent=2) }}": '{\n  "b": 1,\n  "a": {\n    "c": null\n  }\n}',
    "{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}": '{"a":2,"b":1}',
    "{{ items | map('string') | list | tojson }}": '["1", "2", "3"]',
    "{{ items | map('string') | tojson }}": '["1", "2", "3"]',
    "{% for x in items %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}": "13",
    "{% for x in items %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}": "1",
    "{% for x in items if x > 1 %}{{ loop.index }}{{ x }}{% else %}none{% endfor %}": "1223",
    "  {% if yes %}\nline\n  {% endif %}\nend": "line\nend",
    "{%- set ns = namespace(n=0) -%}{% for x in items %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}": "6",
    "{% macro m(a, b='x') %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(2, b=3) }}": "[1x][23]",
    "{% generation %}{{ text }}{% endgeneration %}": "a<b>é",
    "{{ message.content }}{{ message['role'] }}{{ message.missing is defined }}": "hiuserFalse",
    "{{ map | dictsort | first | first }}{{ map.items() | list | length }}": "a2",
    "{{ 'a,b'.split(',')[-1] }}{{ ' x '.strip() }}{{ 'ab'.startswith('a') }}{{ 'AB'.lower() }}": "bxTrueab",
    "{{ items[::-1] }}{{ items[-1:] }}{{ items | length }}": "[3, 2, 1][3]3",
    "{{ '%s-%03d' % ('a', 7) }}{{ 'n={}'.format(3) }}{{ '%s' | format(text) }}": "a-007n=3a<b>é",
    "{{ 'ab' * 3 ~ 1 ~ none }}{{ 'x' in 'xyz' }}{{ 7 // 2 }}{{ 2 ** 10 }}": "ababab1NoneTrue31024",
    "{% set x %}captured{% endset %}{{ x | upper | replace('TURED', 's') }}": "CAPs",
    "{{ items | join(', ') }}{{ items | sum }}{{ items | reject('equalto', 2) | list }}": "1, 2, 36[1, 3]",
    "{{ undefined_name }}{{ undefined_name is none }}{{ undefined_name | default('d') }}": "Falsed",
    "{{ range(3) | list }}{{ strftime_now('%Y') | length }}": "[0, 1, 2]4",
    "{% set a, b = 1, 2 %}{{ b }}{% raw %}{{ x }}{% endraw %}{# gone #}": "2{{ x }}",
    "{{ 'a\nb' | indent(2) }}{{ 1.5 | round | int }}": "a\n  b2",
    "{{ items is iterable }}{{ map is mapping }}{{ text is string }}": "TrueTrueTrue",
    "a\n": "a",
}


@pytest.mark.parametrize("text", WORKS)
def test_what_templates_rely_on(text: str) -> None:
    assert render_jinja(text, VALUES) == WORKS[text]


ESCAPES = """
{{ ''.__class__ }}
{{ ''.__class__.__mro__[1].__subclasses__() }}
{{ ''['__class__'] }}
{{ ''|attr('__class__') }}
{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}
{{ ''|attr('__cla' ~ 'ss__') }}
{{ [].__class__.__base__ }}
{{ {}.__class__.__bases__[0] }}
{{ ().__class__.__base__.__subclasses__() }}
{{ (1).__class__ }}
{{ self.__class__ }}
{{ self.__init__.__globals__ }}
{{ self._TemplateReference__context }}
{{ self._TemplateReference__context.environment }}
{{ namespace.__init__.__globals__ }}
{{ namespace.__init__.__globals__['os'] }}
{{ range.__class__ }}
{{ dict.__base__ }}
{{ dict.mro() }}
{{ dict.__subclasses__() }}
{{ raise_exception.__globals__ }}
{{ raise_exception.__globals__['__builtins__']['eval']('1') }}
{{ raise_exception.__code__ }}
{{ raise_exception.__closure__ }}
{{ raise_exception.__defaults__ }}
{{ strftime_now.__globals__['datetime'] }}
{{ strftime_now.__code__.co_consts }}
{{ strftime_now.func_globals }}
{{ message.__class__.__init__ }}
{{ message.items.__self__ }}
{{ message.items.__class__ }}
{{ 'a'.upper.__self__.__class__ }}
{{ '{0.__class__}'.format(1) }}
{{ '{0.__class__.__mro__}'.format('') }}
{{ '{a.__class__}'.format(a=1) }}
{{ '{0[__class__]}'.format(message) }}
{{ '{x.__class__}'.format_map({'x': 1}) }}
{{ ('{0.__cl' ~ 'ass__}').format(1) }}
{% set f = '{0.__class__}'.format %}{{ f(1) }}
{{ ['{0.__class__}']|map('format', 1)|list }}
{{ '{0.__class__}'|format(1) ~ ''.__class__ }}
{{ [1]|map(attribute='__class__')|list }}
{{ [1]|map(attribute='real.__class__')|first|attr('__name__') }}
{{ ['']|map('attr', '__class__')|list }}
{{ [{'a': 1}]|groupby('__class__')|list ~ ''.__class__ }}
{{ [1]|sort(attribute='__class__.__name__')|first ~ [].__class__ }}
{{ [1]|selectattr('__class__')|first ~ ''.__doc__.__class__ }}
{% for x in [1] %}{{ loop.__class__ }}{% endfor %}
{% for x in [1] %}{{ loop._iterator }}{% endfor %}
{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}
{% macro m() %}{% endmacro %}{{ m.__class__ }}
{% macro m() %}{% endmacro %}{{ m._environment }}
{% macro m() %}{% endmacro %}{{ m._func }}
{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}
{% macro m() %}{{ caller.__class__ }}{% endmacro %}{% call m() %}{% endcall %}
{% include '/etc/passwd' %}
{% import 'os' as os %}
{% from 'os' import system %}
{% extends '/etc/passwd' %}
{{ lipsum.__globals__ }}
{{ cycler.__init__.__globals__.os.popen('id').read() }}
{{ joiner.__init__.__globals__ }}
{{ get_flashed_messages.__globals__ }}
{{ items.append(4) }}
{{ items.clear() }}
{{ message.update({'role': 'x'}) }}
{{ message.pop('role') }}
{{ message.setdefault('a', 1) }}
{{ open('/etc/passwd').read() }}
{{ __import__('os') }}
{{ eval('1') }}
{{ config.__class__ }}
{% set x = undefined_name.__class__ %}{{ x.__mro__ }}
{{ (x for x in [1]).gi_frame }}
{{ items|map('upper').gi_frame }}
{{ ''.__class__ if true else '' }}
{% if ''.__class__ %}yes{% endif %}
{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__.__mro__ }}
""".strip().splitlines()


@pytest.mark.parametrize("text", ESCAPES)
def test_no_template_reaches_python(text: str) -> None:
    """All fail; none prints a Python object."""
    values = {**VALUES, "items": [1, 2, 3], "message": {"role": "user"}}
    try:
        output = render_jinja(text, values)
    except TemplateError:
        return
    finally:
        assert values["items"] == [1, 2, 3]
        assert values["message"] == {"role": "user"}
    assert not any(
        word in output for word in ("class '", "function", "module", "object at", "root:", "built-in")
    )
    assert "__" not in output.replace("__class__", "") or "{0" in output


def test_there_are_at_least_sixty_escape_attempts() -> None:
    assert len(ESCAPES) >= 60


GROW_TEXT = "{% set ns = namespace(x='xxxxxxxxxx') %}{% for i in range(99) %}"
GROW_LIST = "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
RECURSE = "{% for i in range(9) %}{{ m(n - 1) if n else 'x' }}{% endfor %}"

BOMBS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{{ 'x' * 10 ** 9 }}",
    "{{ 10 ** 9 * 'x' }}",
    "{{ [0] * 10 ** 9 }}",
    "{{ 'x'.center(10 ** 9) }}",
    "{{ 'x' | center(10 ** 9) }}",
    "{{ 'x'.ljust(10 ** 9) }}",
    "{{ 'x'.rjust(10 ** 9) }}",
    "{{ 'x'.zfill(10 ** 9) }}",
    "{{ '\\t'.expandtabs(10 ** 9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10 ** 9) }}",
    "{{ '{x:{y}}'.format_map({'x': 1, 'y': 10 ** 9}) }}",
    "{{ ('{0}' * 100000).format('x' * 10000) }}",
    "{{ ('%s' * 100000) % (('x' * 100000,) * 100000) }}",
    "{% set x = 'x' * 1000000 %}{{ [x] * 1000000 | join }}",
    "{% set x = 'x' * 1000000 %}{{ ([x] * 1000) | join }}",
    "{% set x = 'x' * 1000000 %}{{ x.join('y' * 100000) }}",
    "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}",
    "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
    "{{ ('x' * 100000).translate({120: 'y' * 100000}) }}",
    "{{ ('\\n' * 100000) | indent(100000) }}",
    "{{ [[1]] | tojson(indent=10 ** 9) }}",
    "{{ [1] | batch(10 ** 9, 0) | list }}",
    "{{ [1] | slice(10 ** 9) | list }}",
    "{{ (1).to_bytes(10 ** 9) }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 9 ** 99999 }}",
    GROW_TEXT + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    GROW_TEXT + "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    GROW_LIST + "{{ ns.x | tojson }}",
    GROW_LIST + "{{ ns.x | string }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}" + RECURSE + "{% endmacro %}{{ m(30) }}",
    "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% set x = 'x' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "{{ " + "[" * 9999 + "]" * 9999 + " }}",
    "{{ " + "not " * 9999 + "1 }}",
    "{{ 1" + " + 1" * 9999 + " }}",
    "{{ a" + ".a" * 9999 + " }}",
    "{% if 1 %}" * 999 + "{% endif %}" * 999,
    "{% for i in [1] %}" * 99 + "{% endfor %}" * 99,
    "{{ lipsum(n=100000) }}",
    " " * (MAX_SOURCE + 1),
)


@pytest.mark.slow
@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_bombs_are_refused_quickly(text: str) -> None:
    began = time.process_time()
    with pytest.raises(TemplateError):
        render_jinja(text, {})
    assert time.process_time() - began < 5


def test_faults_carry_the_line() -> None:
    cases: list[tuple[str, type[TemplateError], int]] = [
        ("a\n{% if %}", TemplateSyntaxError, 2),
        ("a\n\n{{ x | nofilter }}", TemplateSyntaxError, 3),
        ("{% for x in y %}", TemplateSyntaxError, 1),
        ("\n{{ a.b.c }}", TemplateError, 2),
        ("\n\n{{ raise_exception('no such turn') }}", TemplateRefused, 3),
        ("\n{{ 'x' * 10 ** 9 }}", TemplateLimitExceeded, 2),
        ("{% macro m() %}\n{{ 1 / 0 }}{% endmacro %}\n{{ m() }}", TemplateError, 2),
    ]
    for text, kind, line in cases:
        with pytest.raises(kind) as caught:
            render_jinja(text, {"a": {}})
        assert caught.value.line == line, text
        assert f"template line {line}: " in str(caught.value)


def test_the_models_own_refusal_is_its_words() -> None:
    with pytest.raises(TemplateRefused) as caught:
        render_jinja("{{ raise_exception('roles must alternate') }}", {})
    assert caught.value.message == "roles must alternate"


def test_checking_finds_syntax_errors_and_runs_nothing() -> None:
    check_jinja("{{ raise_exception('not run') }}")
    with pytest.raises(TemplateSyntaxError):
        check_jinja("{{")


def test_limits_are_per_rendering() -> None:
    text = "{% for i in range(60000) %}{% endfor %}{{ 'x' * 5000000 }}"
    for _ in range(4):
        assert len(render_jinja(text, {})) == 5_000_000 < MAX_OUTPUT


def test_a_long_conversation_fits_the_limits() -> None:
    quadratic = "{% for m in messages %}{% for n in messages %}{% endfor %}{{ m }}{% endfor %}"
    assert len(render_jinja(quadratic, {"messages": ["x" * 1000] * 900})) == 900_000


def test_the_templates_ollama_recognizes_all_compile_and_render(shared_data: Path) -> None:
    found = json.loads((shared_data / "templates" / "ollama" / "index.json").read_text())
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    variables = {"messages": [*messages, messages[0]], "bos_token": "<s>", "eos_token": "</s>"}
    assert len(found) >= 30
    for entry in found:
        assert "hi" in render_jinja(entry["template"], {**variables, "add_generation_prompt": True})

"""Our Go templates against Go's own text/template: thousands of generated templates and values."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelfiles.templates.errors import TemplateError
from modelfiles.templates.go_chat import as_go
from modelfiles.templates.golang import parse_go
from modelfiles.templates.golang_eval import execute
from tests.modelfiles.templates.go_generator import Generator

PROGRAM = Path(__file__).resolve().parents[2] / "contract" / "gotemplate"
CASES = 6000
Oracle = Callable[[list[tuple[str, Any]]], list[tuple[str | None, int]]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """Renders cases with Go: the output, or None and the line of the fault."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        pytest.skip("no Go toolchain")
    binary = tmp_path_factory.mktemp("gotemplate") / "gotemplate"
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    subprocess.run([go, "build", "-o", binary, "."], cwd=PROGRAM, env=environment, check=True, timeout=300)

    def render(cases: list[tuple[str, Any]]) -> list[tuple[str | None, int]]:
        lines = "".join(json.dumps({"template": text, "data": data}) + "\n" for text, data in cases)
        run = subprocess.run([binary], input=lines.encode(), capture_output=True, check=True, timeout=120)
        return [_answer(json.loads(line)) for line in run.stdout.splitlines()]

    return render


def _answer(reply: dict[str, str]) -> tuple[str | None, int]:
    if reply["error"]:
        line = re.match(r"template: \w*:(\d+)", reply["error"])
        return None, int(line[1]) if line else 0
    return base64.b64decode(reply["output"] or "").decode("utf-8", "replace"), 0


def ours(text: str, data: Any) -> tuple[str | None, int]:
    try:
        output = execute(parse_go(text), as_go(data))
    except TemplateError as error:
        return None, error.line
    return output.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), 0


def test_generated_templates_render_as_go_renders_them(oracle: Oracle) -> None:
    generator = Generator(20261120)
    cases = [generator.case() for _ in range(CASES)]
    expected = oracle(cases)
    different = [
        (text, data, want, got)
        for (text, data), want in zip(cases, expected, strict=True)
        if (got := ours(text, data))[0] != want[0]
    ]
    rendered = sum(want is not None for want, _ in expected)
    assert rendered > CASES // 4, "the generator makes too many faulty templates to show anything"
    assert not different, f"{len(different)} of {CASES} differ, first: {different[0]}"


HAND_MADE = (
    "{{",
    "{{}}",
    "{{ . ",
    "{{/* }}",
    "{{end}}",
    "{{if}}{{end}}",
    "{{if .a}}",
    "{{else}}",
    "{{.a.}}",
    "{{$x}}",
    "{{nosuch}}",
    '{{"a}}',
    "{{`a}}",
    "{{'ab'}}",
    "{{'}}",
    "{{(1}}",
    "{{1)}}",
    "{{1 | 2}}",
    "{{.a | .b}}",
    "{{range $i, $j, $k := .a}}{{end}}",
    "{{range $i, 3 := .a}}{{end}}",
    "{{break}}",
    "{{range .}}{{break 1}}{{end}}",
    '{{define "x"}}{{break}}{{end}}',
    '{{if true}}{{define "x"}}{{end}}{{end}}',
    "{{template}}",
    '{{template "x"}}',
    '{{define "x"}}a{{end}}{{define "x"}}b{{end}}',
    '{{define "x"}}{{else}}{{end}}',
    "{{with 1}}{{else if 2}}{{end}}",
    "{{- 3}}",
    "{{-3}}",
    "{{3 -}} x",
    "{{3-}}",
    "{{.a-b}}",
    "{{.x,}}",
    "{{$a,$b:=1}}",
    "{{$ := 1}}{{$}}",
    "{{$x := 1}}{{$x = 2}}{{$x}}",
    "{{$x = 1}}",
    "{{if $x := 1}}{{$x}}{{end}}{{$x}}",
    "{{true.a}}",
    "{{nil}}",
    "{{print nil}}",
    "{{nil.a}}",
    "{{(nil).a}}",
    "{{1 2}}",
    "{{.a 1}}",
    '{{"x" | .a}}',
    "{{len}}",
    "{{len 1 2}}",
    "{{eq 1}}",
    "{{eq 1 2 1}}",
    "{{eq 1 1.0}}",
    "{{eq 'a' (index \"a\" 0)}}",
    '{{lt 1 (index "a" 0)}}',
    "{{lt true false}}",
    "{{index nil 1}}",
    "{{index .}}",
    '{{slice "abc" 1 2 3}}',
    '{{slice "abc" 2 1}}',
    "{{slice 3}}",
    "{{and}}",
    '{{or 0 "" nil}}',
    "{{and 1 (index nil 1)}}",
    "{{or 1 (index nil 1)}}",
    "{{not}}",
    "{{printf}}",
    "{{printf 1}}",
    '{{printf "%d" 1 2 3}}',
    "{{089}}",
    "{{9223372036854775807}}",
    "{{0x}}",
    "{{1__0}}",
    "{{1e}}",
    "{{18446744073709551615}}",
    "{{9223372036854775808}}",
    "{{0x1p4}}",
    "{{1.}}",
    "{{.a}}{{/* c */}}x",
    "{{ /* c */ }}",
    "{{- /* c */}}",
    "x {{- /* c */ -}} y",
    "a{{range 3}}{{.}},{{end}}",
    "{{range $x := 2}}{{$x}}{{end}}",
    "{{range $i, $x := 2}}{{end}}",
    "{{range -1}}{{else}}e{{end}}",
    "{{range 1.5}}{{end}}",
    '{{range "abc"}}{{end}}',
    "{{range true}}{{end}}",
    "{{range nil}}{{end}}",
    '{{html "<a>" 1 2}}',
    '{{js "</x>\'\\"=&é\\x7f\\u2028"}}',
    '{{urlquery "a b&c/é~" 1}}',
    '{{json "<\\u2028\\x01>"}}',
    "{{println}}",
    '{{print 1 2 "a" 3 4}}',
    '{{block "x" .}}b{{end}}',
    '{{block "x"}}b{{end}}',
    '{{define "r"}}{{if gt . 0}}{{.}}{{template "r" 0}}{{end}}{{end}}{{template "r" 3}}',
    '{{define "x"}}{{end}}{{define "x"}}b{{end}}{{template "x"}}',
    "{{call nil}}",
    "{{call 1}}",
    "{{.a.b.c}}",
    "{{$.a.b}}",
    "\n\n{{ .x }}\n{{ index .x 1 }}",
    "{{`a\r\nb`}}",
    '{{"\\777"}}',
    '{{"\\\'"}}',
    "{{'\\\"'}}",
    '{{"\\ud800"}}',
    "{{1i}}",
)


def test_odd_templates_fail_or_render_as_in_go(oracle: Oracle) -> None:
    data = {"a": {"b": 1, "l": [1, 2]}, "b": "text"}
    cases = [(text, data) for text in HAND_MADE]
    different = [
        (text, want, got)
        for (text, _), want in zip(cases, oracle(cases), strict=True)
        if (got := ours(text, data))[0] != want[0]
    ]
    assert [case for case in different if "1i" not in case[0]] == []


def test_faults_name_the_line_go_names(oracle: Oracle) -> None:
    generator = Generator(7)
    cases = [generator.case() for _ in range(1500)]
    answers = oracle(cases)
    faulty = [(case, line) for case, (want, line) in zip(cases, answers, strict=True) if want is None]
    same = sum(ours(*case)[1] == line for case, line in faulty)
    assert len(faulty) > 300
    assert same >= 0.9 * len(faulty), f"{same} of {len(faulty)}"

"""Makes random Go templates and values for them: mostly well typed, sometimes not, so that both outputs and
faults are compared. Deterministic for a seed. Used by the differential test against Go itself.
"""

from __future__ import annotations

import json
import random
from typing import Any

WORDS = [
    "",
    "a",
    "user",
    "Hello, world",
    "<b>&'\"",
    "héllo",
    "日本語",
    "😀",
    "tab\tnew\nline",
    "x" * 20,
    "0",
    " pad ",
]
NUMBERS = [0, 1, -1, 2.5, 1e6, 123456789, 1e21, 1e-7, 0.1, 3, 255, -0.5, 1e100, 100000]
KEYS = ["Role", "Content", "System", "Tools", "a", "b", "Missing", "Messages"]
PATTERNS = [
    "%v",
    "%s",
    "%d",
    "%q",
    "%t",
    "%5v|%-5s",
    "%05d",
    "%x",
    "%+d",
    "%.2f",
    "%6.2f",
    "%T",
    "%%",
    "%s %s",
]
PATTERNS += [
    "%[2]v %[1]v",
    "%c",
    "%U",
    "%e",
    "%g",
    "%z",
    "%",
    "%!",
    "%*d",
    "%.1s",
    "%#v",
    "%+v",
    "%X",
    "%o",
    "%b",
]
PATTERNS += [
    "%8q",
    "%-8v|",
    "% d",
    "%08.3f",
    "%.3v",
    "%s%",
    "%[5]d",
    "%[x]d",
    "%.*f",
    "%G",
    "%#x",
    "%#q",
    "%03s",
]
CONSTANTS = [
    '""',
    '"user"',
    "`raw\n`",
    '"\\n\\t\\u00e9\\x41"',
    "'a'",
    "'\\n'",
    "0",
    "1",
    "-3",
    "2.5",
    "1e3",
    "0xF",
]
CONSTANTS += ["1_0", "true", "false", "nil", '"%"', ".5", "010", "0b11", "0o17", '"\\xff"', "1.0", "99"]


class Generator:
    """One random template and one random value per call of `case`."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.variables: list[str] = []
        self.loops = 0
        self.defined: list[str] = []

    def case(self) -> tuple[str, Any]:
        self.variables, self.loops, self.defined = [], 0, []
        definitions = "".join(self.definition(i) for i in range(self.random.choice([0, 0, 0, 1, 2])))
        return definitions + self.body(3), self.mapping(3)

    # values

    def value(self, depth: int) -> Any:
        kinds = ["text", "text", "number", "bool", "null"] + (["list", "map", "list"] if depth else [])
        kind = self.random.choice(kinds)
        if kind == "text":
            return self.random.choice(WORDS)
        if kind == "number":
            return self.random.choice(NUMBERS)
        if kind == "bool":
            return self.random.random() < 0.5
        if kind == "list":
            return [self.value(depth - 1) for _ in range(self.random.randrange(4))]
        return self.mapping(depth - 1) if kind == "map" else None

    def mapping(self, depth: int) -> dict[str, Any]:
        keys = self.random.sample(KEYS, self.random.randrange(len(KEYS)))
        value: dict[str, Any] = {key: self.value(depth) for key in keys if key != "Missing"}
        if self.random.random() < 0.5:
            roles = ["user", "assistant", "system"]
            value["Messages"] = [
                {"Role": self.random.choice(roles), "Content": self.random.choice(WORDS)} for _ in range(3)
            ]
        return value

    # templates

    def body(self, depth: int) -> str:
        mark = len(self.variables)
        text = "".join(self.statement(depth) for _ in range(self.random.randrange(1, 4)))
        del self.variables[mark:]
        return text

    def action(self, inside: str) -> str:
        left = self.random.choice(["{{", "{{", "{{- ", "{{ ", "{{-\n"])
        right = self.random.choice(["}}", "}}", " -}}", " }}", "\n-}}"])
        return left + inside + right

    def statement(self, depth: int) -> str:
        kinds = ["text", "text", "print", "print", "print", "set", "comment"]
        if depth:
            kinds += ["if", "if", "range", "range", "with", "jump", "template", "block"]
        return getattr(self, "make_" + self.random.choice(kinds))(depth)

    def make_text(self, depth: int) -> str:
        return self.random.choice([" ", "\n", "text", " a \n b ", "\t", "}}", "{", "<|im_end|>\n", "é "])

    def make_comment(self, depth: int) -> str:
        return self.random.choice(["{{/* c */}}", "{{- /* c\n */ -}}", "{{/* c */ -}}", "{{- /**/}}"])

    def make_print(self, depth: int) -> str:
        return self.action(self.pipeline(2))

    def make_set(self, depth: int) -> str:
        if self.variables and self.random.random() < 0.5:
            return self.action(f"{self.random.choice(self.variables)} = {self.pipeline(2)}")
        name = f"$v{len(self.variables)}"
        text = self.action(f"{name} := {self.pipeline(2)}")
        self.variables.append(name)
        return text

    def make_if(self, depth: int) -> str:
        text = self.action("if " + self.condition()) + self.body(depth - 1)
        while self.random.random() < 0.3:
            text += self.action("else if " + self.condition()) + self.body(depth - 1)
        if self.random.random() < 0.4:
            text += self.action("else") + self.body(depth - 1)
        return text + self.action("end")

    def make_with(self, depth: int) -> str:
        mark = len(self.variables)
        head = self.pipeline(1)
        if self.random.random() < 0.3:
            self.variables.append(f"$w{mark}")
            head = f"$w{mark} := {head}"
        text = self.action("with " + head) + self.body(depth - 1)
        if self.random.random() < 0.3:
            text += self.action(self.random.choice(["else", "else with " + self.pipeline(1)])) + self.body(
                depth - 1
            )
        del self.variables[mark:]
        return text + self.action("end")

    def make_range(self, depth: int) -> str:
        mark = len(self.variables)
        source = self.random.choice([".Messages", "$.Messages", "$.Tools", ".a", ".", "3", self.pipeline(1)])
        form = self.random.randrange(4)
        if form == 1:
            self.variables.append(f"$e{mark}")
            source = f"$e{mark} := {source}"
        elif form == 2:
            self.variables += [f"$i{mark}", f"$e{mark}"]
            source = f"$i{mark}, $e{mark} := {source}"
        elif form == 3 and self.variables:
            source = f"{self.random.choice(self.variables)} = {source}"
        self.loops += 1
        text = self.action("range " + source) + self.body(depth - 1)
        self.loops -= 1
        if self.random.random() < 0.3:
            text += self.action("else") + self.body(depth - 1)
        del self.variables[mark:]
        return text + self.action("end")

    def make_jump(self, depth: int) -> str:
        if not self.loops and self.random.random() < 0.95:
            return self.make_print(depth)
        return (
            "{{if "
            + self.condition()
            + "}}"
            + self.action(self.random.choice(["break", "continue"]))
            + "{{end}}"
        )

    def make_template(self, depth: int) -> str:
        name = self.random.choice([*self.defined, *self.defined, "none"]) if self.defined else ""
        return self.action(f'template "{name}" ' + self.operand(1)) if name else self.make_text(depth)

    def make_block(self, depth: int) -> str:
        if self.random.random() < 0.7:
            return self.make_print(depth)
        outer, self.variables, loops, self.loops = self.variables, [], self.loops, 0
        inside = self.body(depth - 1)
        self.variables, self.loops = outer, loops
        return self.action(f"block `b{self.random.randrange(10**6)}` " + self.operand(1)) + inside + "{{end}}"

    def definition(self, number: int) -> str:
        inside = self.body(2)
        self.defined.append(f"d{number}")
        return f'{{{{define "d{number}"}}}}{inside}{{{{end}}}}'

    # expressions

    def condition(self) -> str:
        return self.random.choice([self.comparison, self.comparison, lambda: self.pipeline(1)])()

    def comparison(self) -> str:
        function = self.random.choice(["eq", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "eq"])
        if function == "not":
            return f"not {self.operand(1)}"
        if self.random.random() < 0.4:
            return f'{function} .Role "user"'
        return f"{function} {self.operand(1)} {self.operand(1)}"

    def pipeline(self, depth: int) -> str:
        text = self.command(depth)
        while self.random.random() < 0.15:
            text += " | " + self.random.choice(
                ["json", "len", 'printf "%v"', "not", "print", "html", "js", "urlquery"]
            )
        return text

    def command(self, depth: int) -> str:
        if not depth or self.random.random() < 0.5:
            return self.operand(depth)
        kind = self.random.randrange(9)
        if kind == 0:
            function = self.random.choice(["len", "json", "not", "html", "js", "urlquery"])
            return f"{function} {self.operand(depth - 1)}"
        if kind == 1:
            count = self.random.randrange(4)
            return f"{self.random.choice(['print', 'println'])} " + self.operands(count, depth)
        if kind == 2:
            return f"index {self.operand(depth - 1)} " + self.random.choice(["0", "1", "5", '"Role"'])
        if kind == 3:
            bounds = " ".join(self.random.choice("0123") for _ in range(self.random.randrange(4)))
            return f"slice {self.operand(depth - 1)} {bounds}"
        if kind in (4, 5):
            pattern = json.dumps(self.random.choice(PATTERNS))
            return f"printf {pattern} " + self.operands(self.random.randrange(4), depth)
        if kind == 6:
            return self.comparison()
        return f"{self.random.choice(['and', 'or'])} " + self.operands(self.random.randrange(1, 4), depth)

    def operands(self, count: int, depth: int) -> str:
        return " ".join(self.operand(depth - 1) for _ in range(count))

    def operand(self, depth: int) -> str:
        choices = [
            lambda: "." + self.random.choice(KEYS),
            lambda: "." + self.random.choice(KEYS),
            lambda: "$." + self.random.choice(KEYS),
            lambda: "." + self.random.choice(KEYS) + "." + self.random.choice(KEYS),
            lambda: ".",
            lambda: "$",
            lambda: self.random.choice(self.variables) if self.variables else "$.Role",
            lambda: self.random.choice(self.variables) + ".Role" if self.variables else ".Content",
            self.constant,
            self.constant,
        ]
        if depth > 0:
            choices += [lambda: f"({self.pipeline(depth - 1)})", lambda: f"({self.pipeline(depth - 1)}).Role"]
        return self.random.choice(choices)()

    def constant(self) -> str:
        return self.random.choice(CONSTANTS)

"""Parses and renders Modelfiles: FROM, PARAMETER, TEMPLATE, SYSTEM and the other instructions, to a value.

The grammar is Ollama's (`parser/parser.go`): no escapes, values in one or three double quotes, comments only
where an instruction could begin. Does not look at files or stores: what FROM names is for `registry.create`.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from modelfiles.messages import Message, Role
from modelfiles.parameters import merge_parameters, parse_parameter

__all__ = ["Modelfile", "ModelfileError"]

INSTRUCTIONS: Final = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
)
ROLES: Final[tuple[Role, ...]] = ("system", "user", "assistant")

_COMMAND_ERROR: Final = (
    "command must be one of "
    + ", ".join(f'"{name}"' for name in INSTRUCTIONS[:-1])
    + f', or "{INSTRUCTIONS[-1]}"'
)
_ROLE_ERROR: Final = 'message role must be one of "system", "user", or "assistant"'
_NEWLINE: Final = re.compile(r"[\r\n]")
_SEMVER: Final = re.compile(
    r"v?(0|[1-9]\d*)(\.(0|[1-9]\d*)(\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z.-]+)?)?)?"
)
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class ModelfileError(ValueError):
    """A Modelfile that cannot be read or written; `line` and `column` count from 1, 0 where there is none."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(f"(line {line}, column {column}): {message}" if line else message)
        self.message, self.line, self.column = message, line, column


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says. `base` is its first FROM, `bases` any further ones (a projector, say).

    Of repeated SYSTEM, TEMPLATE, REQUIRES, RENDERER, PARSER and DRAFT lines the last counts; a second ADAPTER
    is refused, as Ollama's server does. `parameters`
    keeps names and texts in order, checked; `typed_parameters` gives their values.
    """

    base: str
    parameters: tuple[tuple[str, str], ...] = ()
    template: str | None = None
    system: str | None = None
    adapters: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    licenses: tuple[str, ...] = ()
    requires: str | None = None
    renderer: str | None = None
    parser: str | None = None
    draft: str | None = None
    bases: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str | bytes) -> Modelfile:
        """Read a Modelfile. Raises `ModelfileError` where Ollama would refuse it, with the place."""
        draft, scanner = _Draft(), _Scanner(_decode(text))
        for instruction in _instructions(scanner):
            try:
                draft.add(instruction)
            except ValueError as error:
                raise scanner.error(str(error), instruction.start) from error
        if not draft.bases:
            raise ModelfileError("no FROM line")
        base, *bases = draft.bases
        return Modelfile(
            base,
            tuple(draft.parameters),
            adapters=tuple(draft.adapters),
            messages=tuple(draft.messages),
            licenses=tuple(draft.licenses),
            bases=tuple(bases),
            **draft.single,
        )

    def typed_parameters(self) -> dict[str, Any]:
        """Values by name: `stop` lines collected in a tuple, deprecated parameters left out."""
        return dict(merge_parameters(self.parameters))

    def render(self) -> str:
        """A text that parses to this value. Raises `ModelfileError` for a value the grammar cannot write."""
        lines = [f"FROM {_quote(base)}" for base in (self.base, *self.bases)]
        single = {name: getattr(self, name) for name in _SINGLE}
        lines += [f"{name.upper()} {_quote(value)}" for name, value in single.items() if value is not None]
        lines += [f"ADAPTER {_quote(adapter)}" for adapter in self.adapters]
        lines += [f"PARAMETER {name} {_quote(value)}" for name, value in self.parameters]
        lines += [f"LICENSE {_quote(text)}" for text in self.licenses]
        lines += [f"MESSAGE {message.role} {_quote(message.text)}" for message in self.messages]
        return "\n".join(lines) + "\n"


_SINGLE: Final = ("template", "system", "requires", "renderer", "parser", "draft")


@dataclass(frozen=True, slots=True)
class _Instruction:
    """One line or block: `argument` is the parameter's name or the message's role, else empty."""

    name: str
    argument: str
    value: str
    start: int


@dataclass(slots=True)
class _Draft:
    """A Modelfile in the making."""

    bases: list[str] = field(default_factory=list)
    parameters: list[tuple[str, str]] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)
    single: dict[str, str] = field(default_factory=dict)

    def add(self, instruction: _Instruction) -> None:
        """Take one instruction; raises `ValueError` for a value it cannot have."""
        name, value = instruction.name, instruction.value
        _CHECKS.get(name, _anything)(instruction)
        if name == "parameter":
            self.parameters.append((instruction.argument, value))
        elif name == "message":
            self.messages.append(Message.of(_role(instruction.argument), value))
        elif name == "adapter" and self.adapters:
            raise ValueError("only one adapter is currently supported; give each its own model on one base")
        elif name in _SINGLE:
            self.single[name] = value.removeprefix("v") if name == "requires" else value
        else:
            {"from": self.bases, "adapter": self.adapters, "license": self.licenses}[name].append(value)


def _anything(instruction: _Instruction) -> None:
    pass


def _check_named(instruction: _Instruction) -> None:
    if not instruction.value:
        raise ValueError(f"{instruction.name.upper()} needs a name or a path")


def _check_parameter(instruction: _Instruction) -> None:
    parse_parameter(instruction.argument, instruction.value)


def _check_role(instruction: _Instruction) -> None:
    _role(instruction.argument)


def _check_requires(instruction: _Instruction) -> None:
    if not _SEMVER.fullmatch(instruction.value):
        raise ValueError("requires must be a valid semver (e.g. 0.14.0)")


def _role(text: str) -> Role:
    for role in ROLES:
        if text == role:
            return role
    raise ValueError(_ROLE_ERROR)


_CHECKS: Final[dict[str, Callable[[_Instruction], None]]] = {
    "from": _check_named,
    "adapter": _check_named,
    "draft": _check_named,
    "parameter": _check_parameter,
    "message": _check_role,
    "requires": _check_requires,
}


# Reading


def _decode(text: str | bytes) -> str:
    """Text of UTF-8 bytes, or of UTF-16 where a byte order mark says so; bad bytes become U+FFFD."""
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    for mark, encoding in _BOMS:
        if text.startswith(mark):
            return text[len(mark) :].decode(encoding, "replace")
    return text.decode("utf-8", "replace")


def _instructions(scanner: _Scanner) -> Iterator[_Instruction]:
    while scanner.skip_to_instruction():
        start = scanner.position
        name = scanner.word(str.isalpha).lower()
        if name not in INSTRUCTIONS or scanner.peek() not in (" ", "\t", ""):
            raise scanner.error(_COMMAND_ERROR, start)
        argument = ""
        if name in ("parameter", "message"):
            scanner.skip_blanks()
            argument = scanner.word(_is_name_character)
            if scanner.peek() not in (" ", "\t") or not argument:
                if name == "message" and argument not in ROLES:
                    raise scanner.error(_ROLE_ERROR, start)
                raise scanner.error(f"unexpected EOF: {name.upper()} {argument} has no value", start)
        elif not scanner.peek():
            raise scanner.error(f"unexpected EOF: {name.upper()} has no value", start)
        yield _Instruction(name, argument, scanner.value(name), start)


def _is_name_character(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character == "_")


class _Scanner:
    """A position in the text of a Modelfile."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0

    def peek(self) -> str:
        """The next character, empty at the end."""
        return self.text[self.position : self.position + 1]

    def place(self, position: int) -> tuple[int, int]:
        """Line and column of a position, from 1."""
        before = self.text[:position].replace("\r\n", "\n").replace("\r", "\n")
        return before.count("\n") + 1, len(before) - before.rfind("\n")

    def error(self, message: str, position: int) -> ModelfileError:
        """An error at a position."""
        return ModelfileError(message, *self.place(position))

    def skip_to_instruction(self) -> bool:
        """Pass over blanks, newlines and comments; false at the end of the text."""
        while character := self.peek():
            if character == "#":
                self.position = self._line_end()
            elif character in " \t\r\n":
                self.position += 1
            else:
                return True
        return False

    def skip_blanks(self) -> None:
        """Pass over blanks on this line."""
        while self.peek() in (" ", "\t"):
            self.position += 1

    def word(self, belongs: Callable[[str], bool]) -> str:
        """The longest run of characters that belong."""
        start = self.position
        while (character := self.peek()) and belongs(character):
            self.position += 1
        return self.text[start : self.position]

    def value(self, name: str) -> str:
        """The rest of the line without outer white space, or a quoted value over as many lines as need be."""
        begin, line_end = self.position, self._line_end()
        while begin < line_end and self.text[begin].isspace():
            begin += 1
        quote = next((mark for mark in ('"""', '"') if self.text.startswith(mark, begin)), "")
        if not quote:
            self.position = line_end
            return _visible(self.text[begin:line_end].rstrip())
        line_begin = begin
        while True:
            end = line_begin + len(self.text[line_begin : self._line_end()].rstrip())
            self.position = self._line_end()
            if end >= begin + 2 * len(quote) and self.text.endswith(quote, begin, end):
                return _visible(self.text[begin + len(quote) : end - len(quote)])
            if self.position == len(self.text):
                raise self.error(
                    f"unexpected EOF: the quote that {name.upper()} opens here never closes", begin
                )
            self.position += 1
            line_begin = self.position

    def _line_end(self) -> int:
        found = _NEWLINE.search(self.text, self.position)
        return found.start() if found else len(self.text)


def _visible(text: str) -> str:
    """The text without control characters other than newlines and tabs, which no prompt means to contain."""
    if text.isprintable():
        return text
    return "".join(each for each in text if each in "\n\r\t" or unicodedata.category(each) != "Cc")


# Writing


def _quote(value: str) -> str:
    """The value in the first notation that reads back as it is."""
    if _visible(value) == value:
        for written in (value, f'"{value}"', f'"""{value}"""'):
            if _reads_as(written, value):
                return written
    raise ModelfileError(f"this value cannot be written in a Modelfile: {value[:60]!r}")


def _reads_as(written: str, value: str) -> bool:
    if not written:
        return False
    scanner = _Scanner(written + "\nFROM")
    try:
        return scanner.value("value") == value and scanner.position == len(written)
    except ModelfileError:
        return False

"""The tree of a parsed Go template: plain frozen values, made by `golang`, walked by `golang_eval`.

Statements stand in bodies (tuples); operands stand in commands; every node knows its source line.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Constant:
    """A string, boolean or nil."""

    value: str | bool | None
    line: int


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric constant; which of the two it is without context follows from how it is written."""

    text: str
    value: int | float
    line: int


@dataclass(frozen=True, slots=True)
class Dot:
    """`.`"""

    line: int


@dataclass(frozen=True, slots=True)
class Field:
    """`.A.B`"""

    names: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Variable:
    """`$x.A.B`; `name` includes the dollar sign."""

    name: str
    names: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Function:
    """A function's name."""

    name: str
    line: int


@dataclass(frozen=True, slots=True)
class Chain:
    """`(pipeline).A.B`, or fields of a function's result."""

    operand: Operand
    names: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands, each fed the result of the one before, and the variables that get the last result."""

    commands: tuple[tuple[Operand, ...], ...]
    variables: tuple[str, ...]
    assigns: bool
    line: int


Operand = Constant | Number | Dot | Field | Variable | Function | Chain | Pipeline


@dataclass(frozen=True, slots=True)
class Text:
    """Text outside actions."""

    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Action:
    """A pipeline whose result is printed, unless it sets variables."""

    pipeline: Pipeline
    line: int


@dataclass(frozen=True, slots=True)
class Branch:
    """`if`, `with` or `range`, told apart by `kind`."""

    kind: str
    pipeline: Pipeline
    body: Body
    otherwise: Body | None
    line: int


@dataclass(frozen=True, slots=True)
class Call:
    """`template` (and `block`): another template's output."""

    name: str
    pipeline: Pipeline | None
    line: int


@dataclass(frozen=True, slots=True)
class Jump:
    """`break` or `continue`."""

    kind: str
    line: int


Statement = Text | Action | Branch | Call | Jump
Body = tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class GoTemplate:
    """The main body and the templates defined in it by name."""

    body: Body
    defined: dict[str, Body]

"""Parses Go's text/template language, as far as model templates can use it, into `go_nodes`.

Knows the grammar and which functions there are, nothing of values. Every fault is a `TemplateSyntaxError`
with its line. Called by `go_chat` and by `chat.check_template`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import NoReturn

from modelfiles.templates.errors import (
    MAX_DEPTH,
    TemplateLimitExceeded,
    TemplateSyntaxError,
    check_source_size,
)
from modelfiles.templates.go_constants import parse_character, parse_number, unquote
from modelfiles.templates.go_functions import FUNCTIONS
from modelfiles.templates.go_lexer import Item, lex_go
from modelfiles.templates.go_nodes import (
    Action,
    Body,
    Branch,
    Call,
    Chain,
    Constant,
    Dot,
    Field,
    Function,
    GoTemplate,
    Jump,
    Number,
    Operand,
    Pipeline,
    Statement,
    Text,
    Variable,
)

_OPERANDS = frozenset(
    ("bool", "char", "dot", "field", "name", "number", "nil", "raw", "string", "variable", "open")
)


@lru_cache(maxsize=16)
def parse_go(source: str) -> GoTemplate:
    """The tree of a template. Raises `TemplateSyntaxError`."""
    check_source_size(source)
    try:
        return _Parser(source).template()
    except RecursionError:
        raise TemplateLimitExceeded(f"nests more than {MAX_DEPTH} deep") from None


class _Parser:
    """Recursive descent over the items, with pushed-back ones."""

    def __init__(self, source: str) -> None:
        self._items: Iterator[Item] = lex_go(source)
        self._back: list[Item] = []
        self._variables = ["$"]
        self._ranges = 0
        self._depth = 0
        self._defined: dict[str, Body] = {}

    def template(self) -> GoTemplate:
        body: list[Statement] = []
        while self._peek().kind != "eof":
            if self._peek().kind == "left":
                left = self._next()
                if self._peek_solid().kind == "define":
                    self._next_solid()
                    self._definition()
                    continue
                self._back.append(left)
            statement = self._statement()
            if isinstance(statement, Item):
                self._fail(f"unexpected {{{{{statement.kind}}}}}", statement.line)
            body.append(statement)
        return GoTemplate(tuple(body), self._defined)

    # items

    def _next(self) -> Item:
        item = self._back.pop() if self._back else next(self._items)
        if item.kind == "error":
            self._fail(item.text, item.line)
        return item

    def _peek(self) -> Item:
        item = self._next()
        self._back.append(item)
        return item

    def _next_solid(self) -> Item:
        while (item := self._next()).kind == "space":
            pass
        return item

    def _peek_solid(self) -> Item:
        item = self._next_solid()
        self._back.append(item)
        return item

    def _expect(self, kinds: tuple[str, ...], context: str) -> Item:
        item = self._next_solid()
        if item.kind not in kinds:
            self._unexpected(item, context)
        return item

    def _fail(self, message: str, line: int) -> NoReturn:
        raise TemplateSyntaxError(message, line)

    def _unexpected(self, item: Item, context: str) -> NoReturn:
        self._fail(f"unexpected {item.text!r} in {context}", item.line)

    @contextmanager
    def _deeper(self, line: int) -> Iterator[None]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TemplateLimitExceeded(f"nests more than {MAX_DEPTH} deep", line)
        yield
        self._depth -= 1

    # statements

    def _statement(self) -> Statement | Item:
        """A statement, or the `end` or `else` item that closes the body."""
        item = self._next_solid()
        if item.kind == "text":
            return Text(item.text, item.line)
        if item.kind != "left":
            self._unexpected(item, "input")
        word = self._next_solid()
        if word.kind in ("if", "with", "range"):
            return self._branch(word)
        if word.kind in ("break", "continue"):
            return self._jump(word)
        if word.kind == "end":
            self._expect(("right",), "end")
            return word
        if word.kind == "else":
            if self._peek_solid().kind not in ("if", "with"):
                self._expect(("right",), "else")
            return word
        if word.kind in ("template", "block"):
            return self._call(word)
        self._back.append(word)
        return Action(self._pipeline("command", "right"), word.line)

    def _jump(self, word: Item) -> Jump:
        self._expect(("right",), f"{{{{{word.kind}}}}}")
        if not self._ranges:
            self._fail(f"{{{{{word.kind}}}}} outside {{{{range}}}}", word.line)
        return Jump(word.kind, word.line)

    def _body(self) -> tuple[Body, Item]:
        statements: list[Statement] = []
        while True:
            item = self._peek_solid()
            if item.kind == "eof":
                self._fail("unexpected EOF", item.line)
            statement = self._statement()
            if isinstance(statement, Item):
                return tuple(statements), statement
            statements.append(statement)

    def _branch(self, word: Item) -> Branch:
        with self._deeper(word.line):
            scope = len(self._variables)
            pipeline = self._pipeline(word.kind, "right")
            self._ranges += word.kind == "range"
            body, closing = self._body()
            self._ranges -= word.kind == "range"
            otherwise: Body | None = None
            if closing.kind == "else":
                otherwise = self._otherwise(word)
            del self._variables[scope:]
        return Branch(word.kind, pipeline, body, otherwise, word.line)

    def _otherwise(self, word: Item) -> Body:
        following = self._peek_solid()
        if following.kind in ("if", "with"):
            if following.kind != word.kind:
                self._unexpected(following, "input")
            return (self._branch(self._next_solid()),)
        body, closing = self._body()
        if closing.kind != "end":
            self._fail("expected end; found {{else}}", closing.line)
        return body

    def _template_name(self, context: str) -> str:
        item = self._expect(("string", "raw"), context)
        return unquote(item.text, item.line)

    def _call(self, word: Item) -> Call:
        name = self._template_name(f"{word.kind} clause")
        pipeline = None
        if word.kind == "block" or self._peek_solid().kind != "right":
            pipeline = self._pipeline(f"{word.kind} clause", "right")
        else:
            self._next_solid()
        if word.kind == "block":
            self._define(name, word.line)
        return Call(name, pipeline, word.line)

    def _definition(self) -> None:
        name = self._template_name("define clause")
        line = self._expect(("right",), "define clause").line
        self._define(name, line)

    def _define(self, name: str, line: int) -> None:
        """A body with variables and loops of its own; the first that is not blank counts."""
        outer = (self._variables, self._ranges)
        self._variables, self._ranges = ["$"], 0
        with self._deeper(line):
            body, closing = self._body()
        self._variables, self._ranges = outer
        if closing.kind != "end":
            self._fail("unexpected {{else}} in define clause", closing.line)
        if _is_blank(self._defined.get(name, ())):
            self._defined[name] = body
        elif not _is_blank(body):
            self._fail(f"multiple definition of template {name!r}", line)

    # pipelines

    def _pipeline(self, context: str, end: str) -> Pipeline:
        line = self._peek_solid().line
        variables, assigns = self._declarations(context)
        commands: list[tuple[Operand, ...]] = []
        while (item := self._next_solid()).kind != end:
            if item.kind not in _OPERANDS:
                self._unexpected(item, context)
            self._back.append(item)
            commands.append(self._command())
        if not commands:
            self._fail(f"missing value for {context}", line)
        for position, command in enumerate(commands[1:], 2):
            if isinstance(command[0], Constant | Number | Dot):
                self._fail(f"non executable command in pipeline stage {position}", line)
        return Pipeline(tuple(commands), variables, assigns, line)

    def _declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        names: list[str] = []
        while self._peek_solid().kind == "variable":
            variable = self._next_solid()
            adjacent = self._peek()
            following = self._peek_solid()
            if following.kind in ("assign", "declare"):
                self._next_solid()
                names.append(variable.text)
                self._variables.append(variable.text)
                return tuple(names), following.kind == "assign"
            if following.kind != "comma":
                self._back += [adjacent, variable] if adjacent.kind == "space" else [variable]
                break
            self._next_solid()
            names.append(variable.text)
            self._variables.append(variable.text)
            if context != "range" or len(names) > 1:
                self._fail(f"too many declarations in {context}", variable.line)
            if self._peek_solid().kind not in ("variable", "right", "close"):
                self._fail("range can only initialize variables", variable.line)
        return tuple(names), False

    def _command(self) -> tuple[Operand, ...]:
        operands: list[Operand] = []
        while True:
            self._peek_solid()
            operand = self._operand()
            if operand is not None:
                operands.append(operand)
            item = self._next()
            if item.kind == "space":
                continue
            if item.kind in ("right", "close"):
                self._back.append(item)
            elif item.kind != "pipe":
                self._unexpected(item, "operand")
            break
        if not operands:
            self._fail("empty command", item.line)
        return tuple(operands)

    def _operand(self) -> Operand | None:
        """A term and the fields after it."""
        term = self._term()
        names: list[str] = []
        while term is not None and self._peek().kind == "field":
            names.append(self._next().text[1:])
        if term is None or not names:
            return term
        if isinstance(term, Field):
            return Field((*term.names, *names), term.line)
        if isinstance(term, Variable):
            return Variable(term.name, (*term.names, *names), term.line)
        if isinstance(term, Constant | Number | Dot):
            self._fail("unexpected . after a constant or dot", term.line)
        return Chain(term, tuple(names), term.line)

    def _term(self) -> Operand | None:
        item = self._next_solid()
        line = item.line
        if item.kind == "open":
            with self._deeper(line):
                return self._pipeline("parenthesized pipeline", "close")
        if item.kind == "name":
            if item.text not in FUNCTIONS:
                self._fail(f"function {item.text!r} not defined", line)
            return Function(item.text, line)
        if item.kind == "variable":
            if item.text not in self._variables:
                self._fail(f"undefined variable {item.text!r}", line)
            return Variable(item.text, (), line)
        if item.kind == "char":
            return parse_character(item.text, line)
        simple = _SIMPLE_TERMS.get(item.kind)
        if simple is None:
            self._back.append(item)
            return None
        return simple(item)


_SIMPLE_TERMS: Mapping[str, Callable[[Item], Operand]] = {
    "dot": lambda item: Dot(item.line),
    "nil": lambda item: Constant(None, item.line),
    "field": lambda item: Field((item.text[1:],), item.line),
    "bool": lambda item: Constant(item.text == "true", item.line),
    "number": lambda item: parse_number(item.text, item.line),
    "string": lambda item: Constant(unquote(item.text, item.line), item.line),
    "raw": lambda item: Constant(unquote(item.text, item.line), item.line),
}


def _is_blank(body: Body) -> bool:
    return all(isinstance(statement, Text) and not statement.text.strip() for statement in body)

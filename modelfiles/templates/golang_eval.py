"""Runs a parsed Go template over a value and returns its output.

Follows Go's text/template with `missingkey=zero`: truth, scopes, ranges, comparison, and the difference
between no value and a nil interface. Knows nothing of messages. Every statement and function call is charged
to a `Budget`. Called by `go_chat`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from modelfiles.templates.errors import (
    MAX_DEPTH,
    MAX_OUTPUT,
    Budget,
    TemplateError,
    TemplateLimitExceeded,
)
from modelfiles.templates.go_functions import FUNCTIONS, call_function, is_true
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
from modelfiles.templates.go_values import (
    INVALID,
    Byte,
    Invalid,
    Struct,
    format_value,
    sorted_items,
    type_name,
)


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _NoFinal:
    """The first command of a pipeline gets no value from one before it."""


_NO_FINAL = _NoFinal()


def execute(template: GoTemplate, data: Any) -> str:
    """The output of a template. Raises `TemplateError` with the line."""
    state = _State(template, Budget())
    try:
        state.run(template.body, data, [("$", data)])
    except RecursionError:
        raise TemplateLimitExceeded("templates call each other too deep") from None
    return "".join(state.out)


class _State:
    def __init__(self, template: GoTemplate, budget: Budget) -> None:
        self.template = template
        self.budget = budget
        self.out: list[str] = []
        self.size = 0
        self.depth = 0
        self.scope: list[tuple[str, Any]] = []

    def run(self, body: Body, dot: Any, scope: list[tuple[str, Any]]) -> None:
        """A body with variables of its own."""
        outer, self.scope = self.scope, scope
        self.depth += 1
        self._body(body, dot)
        self.depth -= 1
        self.scope = outer

    # statements

    def _body(self, body: Body, dot: Any) -> None:
        for statement in body:
            self._statement(statement, dot)

    def _statement(self, statement: Statement, dot: Any) -> None:
        try:
            self.budget.step()
            self._walk(statement, dot)
        except TemplateError as error:
            if not error.line:
                error.line = statement.line
            raise

    def _walk(self, statement: Statement, dot: Any) -> None:
        if isinstance(statement, Text):
            self._write(statement.text)
        elif isinstance(statement, Action):
            value = self._pipeline(statement.pipeline, dot)
            if not statement.pipeline.variables:
                self._write(printable(value))
        elif isinstance(statement, Branch):
            mark = len(self.scope)
            if statement.kind == "range":
                self._range(statement, dot)
            else:
                self._if_or_with(statement, dot)
            del self.scope[mark:]
        elif isinstance(statement, Call):
            self._call_template(statement, dot)
        else:
            raise _JUMPS[statement.kind]

    def _write(self, text: str) -> None:
        self.size += len(text)
        if self.size > MAX_OUTPUT:
            raise TemplateLimitExceeded(f"prompt is longer than {MAX_OUTPUT} characters")
        self.out.append(text)

    def _if_or_with(self, branch: Branch, dot: Any) -> None:
        value = self._pipeline(branch.pipeline, dot)
        if is_true(value):
            self._body(branch.body, value if branch.kind == "with" else dot)
        elif branch.otherwise is not None:
            self._body(branch.otherwise, dot)

    def _range(self, branch: Branch, dot: Any) -> None:
        pipeline = branch.pipeline
        value = self._pipeline(pipeline, dot)
        mark = len(self.scope)
        ran = False
        for index, element in _entries(value, len(pipeline.variables)):
            ran = True
            self.budget.step()
            self._set_range_variables(pipeline, index, element)
            try:
                self._body(branch.body, element)
            except _Continue:
                pass
            except _Break:
                break
            finally:
                del self.scope[mark:]
        if not ran and branch.otherwise is not None:
            with contextlib.suppress(_Break):  # as in Go, `break` there ends this range, not the outer one
                self._body(branch.otherwise, dot)

    def _set_range_variables(self, pipeline: Pipeline, index: Any, element: Any) -> None:
        """One variable gets the element; of two the first gets the index."""
        values = (element,) if len(pipeline.variables) == 1 else (index, element)
        for position, name in enumerate(pipeline.variables):
            if pipeline.assigns:
                self._assign(name, values[position])
            else:
                self.scope[len(self.scope) - len(pipeline.variables) + position] = (name, values[position])

    def _call_template(self, call: Call, dot: Any) -> None:
        body = self.template.defined.get(call.name)
        if body is None:
            raise TemplateError(f"template {call.name!r} not defined")
        if self.depth >= MAX_DEPTH:
            raise TemplateLimitExceeded(f"exceeded maximum template depth ({MAX_DEPTH})")
        value = INVALID if call.pipeline is None else self._pipeline(call.pipeline, dot)
        self.run(body, value, [("$", value)])

    # pipelines

    def _pipeline(self, pipeline: Pipeline, dot: Any) -> Any:
        value: Any = _NO_FINAL
        for command in pipeline.commands:
            value = self._command(command, dot, value)
            if value is None:
                value = INVALID
        for name in pipeline.variables:
            if pipeline.assigns:
                self._assign(name, value)
            else:
                self.scope.append((name, value))
        return value

    def _assign(self, name: str, value: Any) -> None:
        for position in range(len(self.scope) - 1, -1, -1):
            if self.scope[position][0] == name:
                self.scope[position] = (name, value)
                return
        raise TemplateError(f"undefined variable: {name}")

    def _command(self, command: tuple[Operand, ...], dot: Any, final: Any) -> Any:
        first = command[0]
        if isinstance(first, Function):
            return self._function(first, command[1:], dot, final)
        has_arguments = len(command) > 1 or final is not _NO_FINAL
        if has_arguments:
            raise TemplateError("can't give argument to non-function", first.line)
        if isinstance(first, Constant) and first.value is None:
            raise TemplateError("nil is not a command", first.line)
        return self._operand(first, dot)

    def _operand(self, operand: Operand, dot: Any) -> Any:
        """The value of an operand; nil is a nil interface."""
        if isinstance(operand, Field):
            return self._fields(dot, operand.names, operand.line)
        if isinstance(operand, Variable):
            return self._fields(self._variable(operand), operand.names, operand.line)
        if isinstance(operand, Constant | Number):
            return operand.value
        if isinstance(operand, Dot):
            return dot
        if isinstance(operand, Pipeline):
            return self._pipeline(operand, dot)
        if isinstance(operand, Chain):
            if isinstance(operand.operand, Constant):
                raise TemplateError("indirection through explicit nil", operand.line)
            return self._fields(self._operand(operand.operand, dot), operand.names, operand.line)
        return self._function(operand, (), dot, _NO_FINAL)

    def _variable(self, variable: Variable) -> Any:
        for name, value in reversed(self.scope):
            if name == variable.name:
                return value
        raise TemplateError(f"undefined variable: {variable.name}", variable.line)

    def _fields(self, value: Any, names: tuple[str, ...], line: int) -> Any:
        for name in names:
            value = _field(value, name, line)
        return value

    def _function(self, function: Function, operands: tuple[Operand, ...], dot: Any, final: Any) -> Any:
        self.budget.step()
        count = len(operands) + (final is not _NO_FINAL)
        least, most = FUNCTIONS[function.name].arity
        if count < least or (most is not None and count > most):
            raise TemplateError(f"wrong number of args for {function.name}: got {count}", function.line)
        if function.name in ("and", "or"):
            return self._and_or(function.name == "or", operands, dot, final)
        arguments = [self._operand(operand, dot) for operand in operands]
        if final is not _NO_FINAL:
            arguments.append(final)
        try:
            return call_function(function.name, arguments, self.budget)
        except TemplateError as error:
            error.message = f"error calling {function.name}: {error.message}"
            error.line = error.line or function.line
            raise

    def _and_or(self, wanted: bool, operands: tuple[Operand, ...], dot: Any, final: Any) -> Any:
        """The first argument whose truth decides, without evaluating those after it."""
        value: Any = INVALID
        for operand in operands:
            value = self._operand(operand, dot)
            if is_true(value) == wanted:
                return value
        return value if final is _NO_FINAL else final


def printable(value: Any) -> str:
    """A value as an action prints it."""
    return "<no value>" if value is None or isinstance(value, Invalid) else format_value(value)


def _field(value: Any, name: str, line: int) -> Any:
    if isinstance(value, Invalid):
        return INVALID
    if value is None:
        raise TemplateError(f"nil pointer evaluating interface {{}}.{name}", line)
    if isinstance(value, Struct) and name in value.fields:
        return value.fields[name]
    if isinstance(value, dict):
        return value.get(name)
    raise TemplateError(f"can't evaluate field {name} in type {type_name(value)}", line)


def _entries(value: Any, variables: int) -> Iterator[tuple[Any, Any]]:
    """Index and element of what `range` runs over."""
    if isinstance(value, Invalid) or value is None:
        return
    if isinstance(value, list):
        yield from enumerate(value)
    elif isinstance(value, dict):
        yield from sorted_items(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        if variables > 1:
            raise TemplateError(f"can't use {value} to iterate over more than one variable")
        kind = Byte if isinstance(value, Byte) else int
        for number in range(value):
            yield INVALID, kind(number)
    else:
        raise TemplateError(f"range can't iterate over {format_value(value)}")


_JUMPS: dict[str, type[Exception]] = {"break": _Break, "continue": _Continue}

__all__ = ["Jump", "execute", "printable"]

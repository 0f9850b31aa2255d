"""Renders Jinja chat templates as Hugging Face's `apply_chat_template` does, in a bounded sandbox.

The only place that builds a Jinja environment. Knows variables and text, not messages or tokens; `chat`
prepares the variables. The environment is Jinja's immutable sandbox without loader, with loop controls,
`tojson`, `raise_exception`, `strftime_now` and the `generation` block; on top of that every loop round, call,
operator and filter is charged to a `Budget`. Time and memory as such are limited by the process around it.
"""

from __future__ import annotations

import datetime
import json
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, update_wrapper
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from modelfiles.templates.errors import (
    MAX_DEPTH,
    MAX_OUTPUT,
    Budget,
    TemplateError,
    TemplateLimitExceeded,
    TemplateRefused,
    TemplateSyntaxError,
    check_source_size,
)
from modelfiles.templates.guard import BREAK, ESCAPE
from modelfiles.templates.jinja_bounds import Bounds, deep_size

_FILENAME = "<chat template>"
_bounds: ContextVar[Bounds] = ContextVar("bounds")

GLOBALS_REMOVED = ("lipsum", "cycler", "joiner")
"""Jinja's globals no chat template uses; `lipsum` makes text of any length."""
MACRO_STEPS = 10
"""What one macro call costs against one loop round."""
FILTERS_REMOVED = ("urlize", "xmlattr", "random", "filesizeformat")


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks text for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _BoundedCodeGenerator(CodeGenerator):
    """Makes `~` an operator the sandbox sees; Jinja compiles it to a plain join."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concatenate((")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write("))")

    def visit_Call(  # noqa: N802
        self, node: nodes.Call, frame: Frame, forward_caller: bool = False
    ) -> None:
        if isinstance(node.node, nodes.EnvironmentAttribute):
            self.write("environment.count_step(")
            self.visit(node.args[0], frame)
            self.write(")")
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)


class _Environment(ImmutableSandboxedEnvironment):
    """The immutable sandbox with every operation charged to the budget of the rendering in progress."""

    code_generator_class = _BoundedCodeGenerator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Macros, loops and namespaces show only their documented parts; formatters are kept to strings."""
        if isinstance(obj, Macro) and attr not in ("name", "arguments", "catch_kwargs", "catch_varargs"):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Raises at once; Jinja's own value would print as nothing."""
        raise SecurityError(f"attribute {attribute!r} of a {type(obj).__name__} is not for templates")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _bounds.get().before_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def concatenate(self, values: tuple[Any, ...]) -> str:
        """The `~` operator."""
        bounds = _bounds.get()
        bounds.budget.step()
        bounds.budget.make(sum(deep_size(value) for value in values))
        return "".join(map(str, values))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        bounds = _bounds.get()
        bounds.before_call(function, args, kwargs)
        return bounds.after(super().call(context, function, *args, **kwargs))

    def count_step(self, steps: int) -> str:
        """Called by the generated code once per loop round and macro call."""
        _bounds.get().budget.step(steps)
        return ""


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefused(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escaping: what models were trained on. The result of `map` counts as a list."""
    text = json.dumps(
        list(value) if isinstance(value, Generator) else value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    for mark in (BREAK, ESCAPE) if ensure_ascii else ():
        text = text.replace(f"\\u{ord(mark):04x}", mark)
    return text


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, charged before and after; Jinja's markers for its first argument are kept."""
    marker = getattr(function, "jinja_pass_arg", None)
    position = 0 if marker is None else 1

    def bounded(*args: Any, **kwargs: Any) -> Any:
        bounds = _bounds.get()
        if len(args) > position:
            bounds.before_filter(name, args[position], args[position + 1 :], kwargs)
        return bounds.after(function(*args, **kwargs))

    return update_wrapper(bounded, function)


def _environment() -> _Environment:
    """The one Jinja environment."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock], optimized=False
    )
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    for name in GLOBALS_REMOVED:
        del environment.globals[name]
    for name in FILTERS_REMOVED:
        del environment.filters[name]
    environment.filters["tojson"] = _tojson
    environment.filters = {name: _bounded_filter(name, f) for name, f in environment.filters.items()}
    return environment


_ENVIRONMENT = _environment()


def _check_depth(tree: nodes.Template) -> None:
    """Refuses deep nesting before code is generated by recursion over it."""
    level: list[nodes.Node] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in node.iter_child_nodes()]
        if not level:
            return
    raise TemplateSyntaxError(f"nests more than {MAX_DEPTH} deep", level[0].lineno or 0)


def _count_steps(tree: nodes.Template) -> None:
    """Puts a call of `count_step` at the start of every loop, macro and block body."""
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            steps = nodes.Const(1 if isinstance(node, nodes.For) else MACRO_STEPS)
            call = nodes.Call(nodes.EnvironmentAttribute("count_step"), [steps], [], None, None)
            statement = nodes.ExprStmt(call).set_lineno(node.lineno)
            statement.set_environment(_ENVIRONMENT)
            node.body.insert(0, statement)


@lru_cache(maxsize=16)
def _compile(text: str) -> jinja2.Template:
    check_source_size(text)
    tree = _ENVIRONMENT.parse(text)
    _check_depth(tree)
    _count_steps(tree)
    code = _ENVIRONMENT.compile(tree, filename=_FILENAME)
    return jinja2.Template.from_code(_ENVIRONMENT, code, _ENVIRONMENT.make_globals(None))


def _line_of(error: BaseException) -> int:
    """The template line an error of the generated code comes from (Jinja rewrites the frames)."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == _FILENAME]
    return (lines[-1] or 0) if lines else 0


@contextmanager
def _errors_with_line() -> Iterator[None]:
    try:
        yield
    except TemplateError as error:
        if not error.line:
            error.line = _line_of(error)
        raise
    except jinja2.TemplateSyntaxError as error:
        raise TemplateSyntaxError(error.message or "syntax error", error.lineno) from None
    except SecurityError as error:
        raise TemplateError(f"refused: {error}", _line_of(error)) from None
    except (RecursionError, MemoryError):
        raise TemplateLimitExceeded("nests or recurses too deep") from None
    except Exception as error:
        raise TemplateError(f"{type(error).__name__}: {error}", _line_of(error)) from None


def check_jinja(text: str) -> None:
    """Raises `TemplateSyntaxError` when `text` is not a Jinja template we can render."""
    token = _bounds.set(Bounds(Budget()))
    try:
        with _errors_with_line():
            _compile(text)
    finally:
        _bounds.reset(token)


def render_jinja(text: str, variables: dict[str, Any]) -> str:
    """The template's output. Raises a `TemplateError` with the line, never another exception."""
    token = _bounds.set(Bounds(Budget()))
    try:
        with _errors_with_line():
            pieces: list[str] = []
            size = 0
            for piece in _compile(text).generate(variables):
                size += len(piece)
                if size > MAX_OUTPUT:
                    raise TemplateLimitExceeded(f"prompt is longer than {MAX_OUTPUT} characters")
                pieces.append(piece)
            return "".join(pieces)
    finally:
        _bounds.reset(token)

"""How large the result of a Jinja operator, filter or method can get, told before it is computed.

`Bounds` knows values and the budget of the rendering, not templates. Used only by `jinja`. Tables name the
operations that can make much out of little; everything else is charged by the size of its result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from modelfiles.templates.errors import Budget, TemplateLimitExceeded

MAX_INTEGER_BITS = 4096
MAX_PARTS = 200_000
"""Elements of a value that is turned into text, at all depths."""
CALL_STEPS = 3
MAX_WIDTH = 999
"""Width or precision in a format string."""

_LONG_WIDTH = re.compile(r"\d{4,}|%[-+ #0]*\*|%[^a-zA-Z%]*\.\*")
_WIDTH_ARGUMENT = re.compile(r"\{[^{}]*\{")

Estimator = Callable[[Any, tuple[Any, ...], dict[str, Any]], int]


def size_of(value: Any) -> int:
    """Characters of a text, elements of a collection, 8 for anything else."""
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | set | frozenset) else 8


def deep_size(value: Any) -> int:
    """Characters `str(value)` or `tojson` would need, roughly; shared parts count each time they appear.

    Raises `TemplateLimitExceeded` for values of more than `MAX_PARTS` parts or nested deeper than 100.
    """
    size = parts = 0
    level = [value]
    for _ in range(100):
        parts += len(level)
        if parts > MAX_PARTS:
            raise TemplateLimitExceeded(f"a value has more than {MAX_PARTS} parts")
        inner: list[Any] = []
        for item in level:
            size += size_of(item) + 2
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list | tuple | set | frozenset):
                inner += item
        if not inner:
            return size
        level = inner
    raise TemplateLimitExceeded("a value is nested more than 100 deep")


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str, default: Any) -> Any:
    return args[index] if len(args) > index else kwargs.get(name, default)


def _width(index: int, name: str, default: int) -> Estimator:
    def estimate(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        width = _argument(args, kwargs, index, name, default)
        return size_of(value) + (width if isinstance(width, int) else 0)

    return estimate


def _indent(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    width = _argument(args, kwargs, 0, "width", 4)
    step = len(width) if isinstance(width, str) else int(width or 0)
    return size_of(value) + (str(value).count("\n") + 1) * step


def _replace(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    old, new = _argument(args, kwargs, 0, "old", ""), _argument(args, kwargs, 1, "new", "")
    text = value if isinstance(value, str | bytes) else str(value)
    if isinstance(text, bytes) or not isinstance(old, str):
        return size_of(text) * max(1, size_of(new))
    return len(text) + text.count(old) * size_of(new)


def _join(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    separator = _argument(args, kwargs, 0, "d", "")
    if not isinstance(value, list | tuple | dict | str | set):
        return 0
    return sum(deep_size(item) for item in value) + len(value) * size_of(separator)


def _str_join(separator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    items = args[0] if args else ()
    return _join(items, (separator,), {})


def _expandtabs(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    tab = _argument(args, kwargs, 0, "tabsize", 8)
    return size_of(value) + str(value).count("\t") * (tab if isinstance(tab, int) else 0)


def _translate(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    table = args[0] if args else {}
    largest = max((size_of(item) for item in table.values()), default=1) if isinstance(table, dict) else 1
    return size_of(value) * max(1, largest)


def _format(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Fields may appear many times: each counted `{` or `%` may bring the largest argument."""
    text = str(value)
    values = list(args) + list(kwargs.values())
    wide = any(isinstance(item, int) and abs(item) > MAX_WIDTH for item in values)
    if _LONG_WIDTH.search(text) or (wide and _WIDTH_ARGUMENT.search(text)):
        raise TemplateLimitExceeded(f"a format width or precision is above {MAX_WIDTH}")
    largest = max((deep_size(item) for item in values), default=0)
    return len(text) + (text.count("{") + text.count("%")) * (largest + MAX_WIDTH)


def _tojson(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    indent = _argument(args, kwargs, 1, "indent", None)
    step = len(indent) if isinstance(indent, str) else (indent if isinstance(indent, int) else 0)
    if step > 64:
        raise TemplateLimitExceeded(f"tojson indents by {step}; the limit is 64")
    return deep_size(value) * (1 + step)


def _count(index: int, name: str) -> Estimator:
    def estimate(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        count = _argument(args, kwargs, index, name, 0)
        return count if isinstance(count, int) else 0

    return estimate


def _sum(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Adding n lists copies the growing sum n times."""
    if not isinstance(value, list | tuple):
        return 0
    return sum(size_of(item) for item in value) * (len(value) if _holds_collections(value) else 1)


def _holds_collections(value: list[Any] | tuple[Any, ...]) -> bool:
    return any(isinstance(item, str | bytes | list | tuple) for item in value)


def _text(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return deep_size(value)


FILTER_SIZES: Mapping[str, Estimator] = {
    "batch": _count(0, "linecount"),
    "center": _width(0, "width", 80),
    "format": _format,
    "indent": _indent,
    "join": _join,
    "pprint": _text,
    "replace": _replace,
    "round": _count(0, "precision"),
    "slice": _count(0, "slices"),
    "string": _text,
    "sum": _sum,
    "tojson": _tojson,
    "wordwrap": lambda value, args, kwargs: size_of(value) * (1 + size_of(kwargs.get("wrapstring", ""))),
}
METHOD_SIZES: Mapping[str, Estimator] = {
    "center": _width(0, "width", 0),
    "expandtabs": _expandtabs,
    "format": _format,
    "format_map": lambda value, args, kwargs: _format(value, tuple(args[0].values()) if args else (), {}),
    "join": _str_join,
    "ljust": _width(0, "width", 0),
    "replace": _replace,
    "rjust": _width(0, "width", 0),
    "to_bytes": _count(0, "length"),
    "translate": _translate,
    "zfill": _width(0, "width", 0),
}


def _integer_bits(operator: str, left: int, right: int) -> int:
    if operator == "**":
        return left.bit_length() * max(0, right)
    return left.bit_length() + right.bit_length()


class Bounds:
    """Checks and charges operations against the budget of the rendering in progress."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def before_operator(self, operator: str, left: Any, right: Any) -> None:
        """Charges what `left operator right` will make; refuses huge integers."""
        self.budget.step()
        if isinstance(left, int) and isinstance(right, int):
            if operator in ("*", "**") and _integer_bits(operator, left, right) > MAX_INTEGER_BITS:
                raise TemplateLimitExceeded(f"an integer would have more than {MAX_INTEGER_BITS} bits")
        elif operator == "*" and isinstance(left, int) != isinstance(right, int):
            times, value = (left, right) if isinstance(left, int) else (right, left)
            self.budget.make(size_of(value) * max(0, times) if isinstance(times, int) else 0)
        elif operator == "%" and isinstance(left, str | bytes):
            values = right if isinstance(right, tuple) else (right,)
            self.budget.make(_format(left, values, {}))
        elif operator == "+":
            self.budget.make(size_of(left) + size_of(right))

    def before_filter(self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Charges one step per element of a collection and the predicted size of the result."""
        self.budget.step(1 + (size_of(value) if isinstance(value, list | tuple | dict | range) else 0))
        if isinstance(value, range):
            self.budget.step(len(value))
        estimate = FILTER_SIZES.get(name)
        if estimate is not None:
            self.budget.make(max(0, estimate(value, args, kwargs)))

    def before_call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Charges a call; for methods of texts and numbers the predicted size of the result."""
        self.budget.step(CALL_STEPS)
        owner = getattr(function, "__self__", None)
        if not isinstance(owner, str | bytes | int):
            owner = getattr(getattr(function, "__wrapped__", None), "__self__", None)
        estimate = METHOD_SIZES.get(getattr(function, "__name__", ""))
        if estimate is not None and isinstance(owner, str | bytes | int):
            self.budget.make(max(0, estimate(owner, args, kwargs)))

    def after(self, value: Any) -> Any:
        """Charges the size of a result; returns it."""
        self.budget.make(size_of(value))
        return value

"""What can go wrong with a chat template, and how much work one rendering may do.

Shared by the Jinja and the Go side. The limits here are the soft ones, with a line number in the message;
the process that renders a stranger's template adds hard ones on time and memory.

    TemplateError                    anything about a template; always a client's or a model's fault
    |- TemplateSyntaxError           the source cannot be parsed
    |- TemplateLimitExceeded         the rendering would be too long, too large or too deep
    |- TemplateRefused               the template itself said no (raise_exception)
    |- UnsupportedMedia              an image or a sound for a model without that sense
"""

from __future__ import annotations

MAX_SOURCE = 256 * 1024
"""Characters of a template; the longest published ones have 17,000."""
MAX_OUTPUT = 8 * 1024 * 1024
"""Characters of one rendered prompt or of any one value made on the way."""
MAX_MADE = 16 * MAX_OUTPUT
"""Characters of all values made by operators and filters in one rendering."""
MAX_STEPS = 1_000_000
"""Loop rounds, calls and actions of one rendering."""
MAX_DEPTH = 100
"""Nesting of blocks and expressions in the source, and of templates or macros calling each other."""


class TemplateError(Exception):
    """`message` without position, `line` counted from 1 or 0 when unknown; `str()` joins both."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message, line)
        self.message = message
        self.line = line

    def __str__(self) -> str:
        return f"template line {self.line}: {self.message}" if self.line else f"template: {self.message}"


class TemplateSyntaxError(TemplateError):
    """The source cannot be parsed."""


class TemplateLimitExceeded(TemplateError):
    """The rendering would be too long, too large or too deep."""


class TemplateRefused(TemplateError):
    """The template called `raise_exception`: it does not take this conversation."""


class UnsupportedMedia(TemplateError):
    """An image or a sound for a model without that sense."""


class Budget:
    """What one rendering has left: steps and characters. Every spending method raises when nothing is."""

    __slots__ = ("_made", "_steps")

    def __init__(self, steps: int = MAX_STEPS, made: int = MAX_MADE) -> None:
        self._steps = steps
        self._made = made

    def step(self, count: int = 1) -> None:
        """Takes `count` steps."""
        self._steps -= count
        if self._steps < 0:
            raise TemplateLimitExceeded(f"needs more than {MAX_STEPS} steps; the template loops too much")

    def make(self, size: int) -> None:
        """Takes room for a value of `size` characters or elements, before it is made where that is known."""
        if size > MAX_OUTPUT:
            raise TemplateLimitExceeded(f"makes a value of {size} characters; the limit is {MAX_OUTPUT}")
        self._made -= size
        if self._made < 0:
            raise TemplateLimitExceeded(f"makes more than {MAX_MADE} characters on the way")


def check_source_size(text: str) -> None:
    """Raises `TemplateSyntaxError` for a source longer than `MAX_SOURCE`."""
    if len(text) > MAX_SOURCE:
        raise TemplateSyntaxError(f"source has {len(text)} characters; the limit is {MAX_SOURCE}")

"""How commands fail: every fault ends as one line on stderr, with a hint, and a stable exit code.

CommandError      1, or the code it carries; `hint` says the way out
Exit codes        EXIT_CODES, the table that README and tests repeat
"""

from __future__ import annotations

from gateway.client import ClientError, ServerRefused, ServerUnreachable

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
NOT_FOUND = 4
INTERRUPTED = 130

EXIT_CODES = {
    OK: "done",
    FAILED: "the server or the machine refused; the message says why",
    USAGE: "the command line is wrong",
    UNREACHABLE: "no server answers",
    NOT_FOUND: "no such model",
    INTERRUPTED: "stopped with Ctrl-C",
}


class CommandError(Exception):
    """A command cannot go on."""

    def __init__(self, message: str, hint: str | None = None, code: int = FAILED) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


def explain(error: ClientError) -> CommandError:
    """A client's fault as a command's, with the hint that helps a person."""
    if isinstance(error, ServerUnreachable):
        return CommandError(
            str(error),
            "start one with `gemmule serve`, or set GEMMULE_HOST to where one runs",
            UNREACHABLE,
        )
    if isinstance(error, ServerRefused):
        if error.status == 404:
            hint = "`gemmule list` shows the models that are there" if "model" in str(error) else None
            return CommandError(str(error), hint, NOT_FOUND)
        if error.status in (401, 403):
            return CommandError(str(error), "set GEMMULE_API_KEY to a key of that server")
    return CommandError(str(error))


def unforeseen(error: Exception) -> CommandError:
    """Anything else: faults of our packages speak for themselves, the rest is a bug of ours."""
    kind = type(error)
    if kind.__module__.partition(".")[0] in {"registry", "modelfiles"}:
        return CommandError(str(error), code=NOT_FOUND if kind.__name__ == "ModelNotFound" else FAILED)
    return CommandError(
        f"internal error: {kind.__name__}: {error}", "GEMMULE_DEBUG=1 shows where; please report it"
    )

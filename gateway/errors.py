"""What can go wrong with a request, and what every dialect needs to say about it.

    GatewayError                 400 unless said otherwise
    |- BadRequest                something in the request is wrong; `param` names the field
    |   |- UnsupportedParameter  the field is known and refused here
    |   |- ContextOverflow       the prompt does not fit the model's context
    |- Unauthorized              401
    |- Forbidden                 403
    |- NotFound                  404
    |   |- ModelNotFound
    |- MethodNotAllowed          405
    |- Conflict                  409
    |- TooLarge                  413
    |- RateLimited               429, with `retry_after`
    |- Overloaded                503, with `retry_after`
    |- ShuttingDown              503
    |- LoadError                 500: the weights cannot be served; asking again will not help
    |- EngineFailure             500: the runner died or reported a fault while it worked
    |- SandboxFailure            500: a worker process died over this request

`describe` maps any exception of any of our packages to a `Fault`, the one value the dialects encode. The
phrases in the messages ("model not found", "maximum context length", ...) are what langchaingo's error
mapper looks for; they are part of the contract.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from engines import base

log = logging.getLogger("gemmule.gateway")


class GatewayError(Exception):
    """Base of all faults of a request: HTTP `status`, OpenAI's `kind` (their `type`) and `code`."""

    status = 400
    kind = "invalid_request_error"
    code: str | None = None
    retry_after: float | None = None
    should_retry: bool | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class BadRequest(GatewayError):
    code = "invalid_value"


class UnsupportedParameter(BadRequest):
    code = "unsupported_parameter"


class ContextOverflow(BadRequest):
    """The prompt is longer than the loaded context (both in tokens)."""

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, model: str, context: int, param: str = "messages") -> None:
        super().__init__(
            f"prompt has {prompt_tokens} tokens, but {model} is loaded with a maximum context length of "
            f"{context} tokens; raise num_ctx or shorten the prompt",
            param=param,
        )
        self.prompt_tokens = prompt_tokens
        self.context = context


class Unauthorized(GatewayError):
    status = 401
    code = "invalid_api_key"


class Forbidden(GatewayError):
    status = 403
    kind = "permission_error"
    code = "forbidden"


class NotFound(GatewayError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """`name` is what the caller wrote; `well_formed` whether any model could be called so."""

    code = "model_not_found"

    def __init__(self, name: str, *, well_formed: bool = True) -> None:
        super().__init__(
            f"model not found: {name!r} is not in the store; `gemmule list` shows what is, "
            f"`gemmule pull` fetches more",
            param="model",
        )
        self.name = name
        self.well_formed = well_formed


class MethodNotAllowed(GatewayError):
    status = 405
    code = "method_not_allowed"


class Conflict(GatewayError):
    status = 409
    code = "conflict"
    should_retry = False


class TooLarge(GatewayError):
    status = 413
    code = "request_too_large"


class RateLimited(GatewayError):
    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(GatewayError):
    status = 503
    kind = "server_error"
    code = "overloaded"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(f"service unavailable: {message}")
        self.retry_after = retry_after


class ShuttingDown(Overloaded):
    code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("the server is shutting down", retry_after=5.0)


class LoadError(GatewayError):
    status = 500
    kind = "server_error"
    code = "model_load_failed"
    should_retry = False


class EngineFailure(GatewayError):
    """`reported` is the engine's own text: what of it strangers may read is told, the whole is logged."""

    status = 500
    kind = "server_error"
    code = "engine_failure"

    def __init__(self, reported: str) -> None:
        super().__init__(public(reported))
        if self.message != reported:
            log.warning("the engine reported: %s", reported)


class SandboxFailure(GatewayError):
    status = 500
    kind = "server_error"
    code = "sandbox_failure"
    should_retry = False


@dataclass(frozen=True, slots=True)
class Fault:
    """An error ready to be encoded by any dialect; `retry_after` is in seconds."""

    status: int
    message: str
    kind: str
    code: str | None
    param: str | None = None
    retry_after: float | None = None
    should_retry: bool | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The retry headers that OpenAI's clients obey."""
        found = {}
        if self.retry_after is not None:
            found["retry-after"] = str(max(1, round(self.retry_after)))
            found["retry-after-ms"] = str(int(self.retry_after * 1000))
        if self.should_retry is not None:
            found["x-should-retry"] = str(self.should_retry).lower()
        return found


RUNNER_GONE = "the process that ran this model ended; the next request starts a new one"

_QUOTED_PATH = re.compile(r"""(["'])(?:file://)?/[^"'\n]*?([^"'/\n]*)\1""")
_PATH = re.compile(r"""(?<![\w.:/~-])(?:file://)?/(?:[^\s"'/:;,()]+/)+([^\s"'/:;,()]*)""")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{4,}\b")


def public(text: str) -> str:
    """An engine's sentence as strangers may read it: one line, names for paths, no last words."""
    line, _, rest = text.strip().partition("\n")
    line = _QUOTED_PATH.sub(r"\1\2\1", line)
    line = _ADDRESS.sub("(address)", _PATH.sub(r"\1", line))
    line, cut, _ = line.partition("; its last words")
    return f"{line.rstrip(' :')}; the server's log says more" if cut or rest.strip() else line


_ENGINE_FAULTS: dict[type[base.EngineError], tuple[int, str, str, bool | None, float | None]] = {
    base.InvalidRequest: (400, "invalid_request_error", "invalid_value", None, None),
    base.EngineOverloaded: (503, "server_error", "overloaded", None, 1.0),
    base.OutOfMemory: (503, "server_error", "out_of_memory", False, None),
    base.LoadFailed: (500, "server_error", "model_load_failed", False, None),
    base.RunnerDied: (500, "server_error", "engine_failure", None, None),
}
"""status, type, code, whether a client should retry, seconds to wait."""


def describe(error: BaseException) -> Fault:
    """What to tell the caller about `error`; anything unforeseen is logged and hidden behind a plain 500."""
    if isinstance(error, GatewayError):
        return Fault(
            error.status, error.message, error.kind, error.code, error.param, error.retry_after,
            error.should_retry,
        )  # fmt: skip
    for kind in type(error).__mro__:
        if kind in _ENGINE_FAULTS:
            status, name, code, should_retry, wait = _ENGINE_FAULTS[kind]
            if status >= 500:
                log.warning("%s: %s", type(error).__name__, error)
            message = RUNNER_GONE if kind is base.RunnerDied else public(str(error))
            return Fault(status, message, name, code, None, wait, should_retry)
    found = _describe_foreign(error)
    if found is not None:
        return found
    log.error("unforeseen fault", exc_info=error)
    return Fault(500, "internal error; the server's log has the details", "server_error", "internal_error")


_FOREIGN_STATUS: dict[str, tuple[int, str]] = {
    "ModelNotFound": (404, "model_not_found"),
    "BlobNotFound": (404, "blob_not_found"),
    "InvalidName": (400, "invalid_model_name"),
    "ReadOnlyModel": (403, "read_only_model"),
    "ModelCorrupt": (500, "model_corrupt"),
    "InvalidManifest": (500, "model_corrupt"),
    "DiskFull": (507, "disk_full"),
    "StoreUnwritable": (500, "store_unwritable"),
    "Unauthorized": (401, "source_unauthorized"),
    "Gated": (401, "source_gated"),
    "NotFound": (404, "source_not_found"),
    "AddressRefused": (400, "address_refused"),
    "ObjectChanged": (502, "source_changed"),
    "Unavailable": (503, "source_unavailable"),
    "SourceError": (502, "source_error"),
}
"""Errors of registry and modelfiles by class name, so that neither is imported before it is needed."""


def _describe_foreign(error: BaseException) -> Fault | None:
    """Faults of `registry` and `modelfiles`: a client's unless their class says a status."""
    package = type(error).__module__.partition(".")[0]
    if package not in {"registry", "modelfiles"}:
        return None
    status, code = _FOREIGN_STATUS.get(type(error).__name__, (getattr(error, "status", 400), None))
    kind = "server_error" if status >= 500 else "invalid_request_error"
    code = code or getattr(error, "code", None)
    should_retry = False if status in (500, 507) else None
    return Fault(status, str(error), kind, code, None, getattr(error, "retry_after", None), should_retry)

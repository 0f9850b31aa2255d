"""From the bytes of a request to a validated body: strict JSON, then a schema, one error shape for both.

Called by the routes of every dialect. A client's mistake is a `BadRequest` with the path of the field.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from gateway.errors import BadRequest
from gateway.strict_json import parse_object

JSON_TYPES = {"", "application/json", "application/x-ndjson"}
Model = TypeVar("Model", bound=BaseModel)


class WrongMediaType(BadRequest):
    status = 415


async def read_body(request: Request, schema: type[Model]) -> Model:
    """The validated body of `request`.

    A web page can send JSON as text/plain, or as a form, without asking first: those are refused. Programs
    that send no type at all are taken at their word, unless a browser speaks for them.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    known = media_type in JSON_TYPES or media_type.endswith("+json")
    if not known or (not media_type and "origin" in request.headers):
        raise WrongMediaType("send the body with Content-Type: application/json")
    return validated(schema, parse_object(await request.body()))


def validated(schema: type[Model], value: object) -> Model:
    """`value` as `schema`; raises `BadRequest` naming the field and what it should be."""
    try:
        return schema.model_validate(value)
    except ValidationError as fault:
        # Of a union's complaints the one that got furthest knows best what was meant.
        worst = max(fault.errors(include_url=False, include_input=False), key=lambda error: len(error["loc"]))
        param = _path(worst["loc"], schema)
        text = str(worst["msg"])
        missing = worst["type"] == "missing"
        what = f"{param} is required" if missing else f"{param}: {text[0].lower()}{text[1:]}"
        code = (
            "missing_required_parameter" if missing else "invalid_type" if "_type" in worst["type"] else None
        )
        raise BadRequest(f"invalid request: {what}", param=param, code=code) from None


def _path(location: tuple[int | str, ...], schema: type[BaseModel]) -> str:
    """`messages.0.content`: pydantic also names the branches of unions, which nobody sent."""
    parts: list[str] = []
    for part in location:
        named_branch = isinstance(part, str) and ("[" in part or part in _BRANCHES)
        if not named_branch:
            parts.append(str(part))
    return ".".join(parts) or "body"


_BRANCHES = {"str", "int", "float", "bool", "dict", "list", "constrained-str", "constrained-int"}

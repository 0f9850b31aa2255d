"""Tools and the choice between them, of Chat Completions and Responses alike.

Pure; raises `BadRequest` with the field. Called by the `convert` of each dialect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.errors import BadRequest, UnsupportedParameter
from gateway.openai.schema import FunctionBody, ToolBody
from gateway.types import ToolChoice
from modelfiles.messages import ToolSpec


def tool_spec(tool: ToolBody, index: int) -> ToolSpec:
    if tool.type != "function" or tool.function is None:
        raise UnsupportedParameter(
            f"tools.{index}.type is {tool.type[:64]!r}; only function tools can be called here",
            param=f"tools.{index}.type",
        )
    return function_spec(tool.function)


def function_spec(function: FunctionBody) -> ToolSpec:
    return ToolSpec(
        function.name, function.description or "", function.parameters or {}, bool(function.strict)
    )


def tool_choice(given: str | Mapping[str, Any] | None) -> ToolChoice:
    """OpenAI's forms of `tool_choice`, Chat's and Responses' alike."""
    if given is None or given == "auto":
        return ToolChoice()
    if given in ("none", "required"):
        return ToolChoice("none" if given == "none" else "required")
    if given == "any":
        return ToolChoice("required")
    if isinstance(given, Mapping):
        kind = given.get("type")
        if kind == "function":
            function = given.get("function")
            name = function.get("name") if isinstance(function, Mapping) else given.get("name")
            if isinstance(name, str) and name:
                return ToolChoice("named", (name,))
        if kind == "allowed_tools":
            return _allowed(given.get("allowed_tools") if "allowed_tools" in given else given)
    raise BadRequest(
        'tool_choice must be "none", "auto", "required", {"type":"function","function":{"name":...}} or '
        '{"type":"allowed_tools",...}',
        param="tool_choice",
    )


def _allowed(given: object) -> ToolChoice:
    """Some of the tools: `auto` may call one of them, `required` must."""
    fields: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    entries = [entry for entry in fields.get("tools") or [] if isinstance(entry, Mapping)]
    names = [
        inner.get("name") if isinstance(inner := entry.get("function"), Mapping) else entry.get("name")
        for entry in entries
    ]
    kept = tuple(name for name in names if isinstance(name, str))
    if not kept:
        raise BadRequest("tool_choice.allowed_tools.tools names no function", param="tool_choice")
    return ToolChoice("named" if fields.get("mode") == "required" else "auto", kept)


def legacy_choice(function_call: str | Mapping[str, Any] | None) -> ToolChoice:
    """`function_call` of the API before tools."""
    if isinstance(function_call, Mapping):
        return ToolChoice("named", (str(function_call.get("name", "")),))
    if function_call not in (None, "auto", "none"):
        raise BadRequest('function_call must be "none", "auto" or {"name":...}', param="function_call")
    return ToolChoice("none" if function_call == "none" else "auto")


def checked_choice(choice: ToolChoice, tools: list[ToolSpec]) -> ToolChoice:
    """`choice`, if the tools it speaks of are there."""
    known = {tool.name for tool in tools}
    missing = [name for name in choice.names if name not in known]
    if missing:
        raise BadRequest(f"tool_choice names {missing[0]!r}, which is not among tools", param="tool_choice")
    if choice.mode in ("required", "named") and not tools:
        raise BadRequest(f"tool_choice {choice.mode!r} needs tools", param="tool_choice")
    return choice

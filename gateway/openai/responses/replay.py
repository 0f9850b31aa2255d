"""A stored response as the stream of events it would have been. Sans-IO; called by the routes beside it.

Deltas are whole pieces, not the tokens of the time; ids and the order of events are those of a live stream.
Every replay numbers them alike, so a reader who lost one can go on with `starting_after`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.streaming import split_text, sse_named

Event = tuple[str, dict[str, Any]]
ENDINGS = {"completed": "response.completed", "failed": "response.failed"}
"""Status and last event; whatever else ended it (a cancellation, a restart) left it incomplete."""

TEXT_EVENTS = {"output_text": "response.output_text", "reasoning_text": "response.reasoning_text"}


def replay(response: Mapping[str, Any], starting_after: int = -1) -> bytes:
    """All events of a response that has ended, less those up to the sequence number `starting_after`."""
    numbered = enumerate(_events(response))
    return b"".join(
        sse_named(name, {"type": name, "sequence_number": number} | fields)
        for number, (name, fields) in numbered
        if number > starting_after
    )


def _events(response: Mapping[str, Any]) -> Iterator[Event]:
    begun = {key: value for key, value in response.items() if key != "usage"}
    begun |= {"status": "in_progress", "completed_at": None, "error": None, "incomplete_details": None}
    begun["output"] = []
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for index, item in enumerate(response["output"]):
        yield from _item(index, item)
    yield ENDINGS.get(response["status"], "response.incomplete"), {"response": response}


def _item(index: int, item: Mapping[str, Any]) -> Iterator[Event]:
    """An item from its opening to its end."""
    empty: dict[str, Any] = {"content": []} if "content" in item else {"arguments": ""}
    yield (
        "response.output_item.added",
        {
            "output_index": index,
            "item": {**item, **empty, "status": "in_progress"},
        },
    )
    place = {"item_id": item["id"], "output_index": index}
    if item["type"] == "function_call":
        yield from _call(place, item)
    for position, part in enumerate(item.get("content", ())):
        yield from _part(place | {"content_index": position}, part)
    yield "response.output_item.done", {"output_index": index, "item": item}


def _call(place: dict[str, Any], item: Mapping[str, Any]) -> Iterator[Event]:
    for piece in split_text(item["arguments"]) if item["arguments"] else ():
        yield "response.function_call_arguments.delta", place | {"delta": piece}
    done = {"name": item["name"], "arguments": item["arguments"]}
    yield "response.function_call_arguments.done", place | done


def _part(place: dict[str, Any], part: Mapping[str, Any]) -> Iterator[Event]:
    name = TEXT_EVENTS[part["type"]]
    logprobs: dict[str, Any] = {"logprobs": []} if "logprobs" in part else {}
    yield "response.content_part.added", place | {"part": {**part, "text": ""} | logprobs}
    for piece in split_text(part["text"]):
        yield f"{name}.delta", place | {"delta": piece} | logprobs
    whole = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
    yield f"{name}.done", place | {"text": part["text"]} | whole
    yield "response.content_part.done", place | {"part": part}

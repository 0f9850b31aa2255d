"""Stored chat completions: list, get, change the metadata of, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from gateway.archive import Stored
from gateway.bodies import read_body
from gateway.errors import NotFound
from gateway.gateway import Gateway
from gateway.openai.keeping import owner_of, page, page_size
from gateway.openai.schema import Body, ChatBody
from gateway.streaming import JSONReply

KIND = "chat.completion"
MOST_SEARCHED = 1000
"""Objects looked at for one page that is filtered by metadata."""

router = APIRouter(prefix="/v1/chat/completions")


class MetadataBody(Body):
    """POST /v1/chat/completions/{id}."""

    metadata: Annotated[dict[str, str], Field(max_length=16)] | None


async def store_chat(gateway: Gateway, body: ChatBody, reply: dict[str, Any], owner: str) -> None:
    """Keeps a reply together with the messages it answered."""
    turns = [
        {"id": f"{reply['id']}-{index}", "content": None, "refusal": None}
        | turn.model_dump(exclude_none=True)
        for index, turn in enumerate(body.messages)
    ]
    await gateway.archive.put(KIND, reply | {"metadata": body.metadata or {}}, turns, owner)


@router.get("")
async def list_completions(request: Request) -> Response:
    """Stored completions, oldest first unless `order` is desc, filtered by model and metadata."""
    query = request.query_params
    limit = page_size(query.get("limit"))
    wanted = {
        name[len("metadata[") : -1]: value
        for name, value in query.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    found = await request.app.state.gateway.archive.page(
        KIND,
        owner_of(request),
        after=query.get("after"),
        limit=MOST_SEARCHED if wanted else limit + 1,
        descending=query.get("order") == "desc",
        model=query.get("model"),
    )
    bodies = [each.body for each in found if wanted.items() <= each.body["metadata"].items()]
    return JSONReply(page(bodies, None, limit))


@router.get("/{identity}")
async def get_completion(request: Request, identity: str) -> Response:
    """One stored completion."""
    return JSONReply((await _find(request, identity)).body)


@router.post("/{identity}")
async def update_completion(request: Request, identity: str) -> Response:
    """Replaces the metadata of a stored completion."""
    body = await read_body(request, MetadataBody)
    stored = await _find(request, identity)
    changed = stored.body | {"metadata": body.metadata or {}}
    await request.app.state.gateway.archive.put(KIND, changed, stored.extra, owner_of(request))
    return JSONReply(changed)


@router.delete("/{identity}")
async def delete_completion(request: Request, identity: str) -> Response:
    """Forgets a stored completion."""
    if not await request.app.state.gateway.archive.delete(KIND, identity, owner_of(request)):
        raise _not_found(identity)
    return JSONReply({"id": identity, "object": "chat.completion.deleted", "deleted": True})


@router.get("/{identity}/messages")
async def list_messages(request: Request, identity: str) -> Response:
    """The messages a stored completion answered."""
    query = request.query_params
    turns = list((await _find(request, identity)).extra)
    if query.get("order") == "desc":
        turns.reverse()
    return JSONReply(page(turns, query.get("after"), page_size(query.get("limit"))))


async def _find(request: Request, identity: str) -> Stored:
    gateway: Gateway = request.app.state.gateway
    stored = await gateway.archive.get(KIND, identity, owner_of(request))
    if stored is None:
        raise _not_found(identity)
    return stored


def _not_found(identity: str) -> NotFound:
    return NotFound(f"chat completion with id {identity[:128]!r} not found", param="completion_id")

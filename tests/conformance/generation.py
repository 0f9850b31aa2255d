"""Has the bundled model write JSON for real schemas and validates what it wrote.

A reply that ended by itself (`finish_reason` is stop) must be valid, always; how many do is a property of the
model and is reported. Sampled at random, to lead the grammar to many places; the seed is the schema's number.

    python -m tests.conformance.generation [--every N] [--max-tokens N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema

from tests.conformance.json_schema import Case, maskbench
from tests.conftest import SHARED_DATA
from tests.gateway.live import live_server

MODEL = "bud"
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Reply:
    """How a reply ended (its status, when refused), and what is wrong with one that should be valid."""

    name: str
    ending: str
    fault: str = ""


async def ask(client: httpx.AsyncClient, case: Case, number: int, max_tokens: int) -> Reply:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Fill in the form."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": case.schema}},
        "temperature": 1,
        "seed": number,
        "max_tokens": max_tokens,
    }
    answer = await client.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        return Reply(
            case.name, str(answer.status_code), "" if answer.status_code == 400 else answer.text[:200]
        )
    choice = answer.json()["choices"][0]
    reason = choice["finish_reason"]
    text = choice["message"]["content"]
    return Reply(case.name, reason, fault_of(text, case.schema) if reason == "stop" else "")


def fault_of(text: str, schema: Any) -> str:
    """What is wrong with a text as an instance of a schema; formats are annotations."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"{error}: {text[:100]!r}"
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)(schema)
    best = jsonschema.exceptions.best_match(validator.iter_errors(value))
    return "" if best is None else f"{best.json_path}: {best.message[:100]}"


async def replies(url: str, cases: list[Case], max_tokens: int) -> list[Reply]:
    """All replies, a few at once."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(client: httpx.AsyncClient, number: int, case: Case) -> Reply:
        async with turns:
            return await ask(client, case, number, max_tokens)

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return await asyncio.gather(*(one(client, number, case) for number, case in enumerate(cases)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--every", type=int, default=4, help="take each Nth schema only")
    parser.add_argument("--max-tokens", type=int, default=400)
    arguments = parser.parse_args()
    if not SHARED_DATA.is_dir():
        print(f"generation: no test material at {SHARED_DATA}; set GEMMULE_TEST_DATA to its folder")
        return 0
    cases = list(maskbench(SHARED_DATA))[:: arguments.every]
    with tempfile.TemporaryDirectory() as folder, live_server(Path(folder)) as server:
        found = asyncio.run(replies(server.url, cases, arguments.max_tokens))
    endings = Counter(reply.ending for reply in found)
    answered = len(found) - endings["400"]
    print(f"{len(found)} schemas: {dict(endings)}")
    print(f"{endings['stop']} of {answered} replies ended by themselves: {endings['stop'] / answered:.0%}")
    wrong = [reply for reply in found if reply.fault]
    print(
        "\n".join(f"{reply.name} ({reply.ending}): {reply.fault}" for reply in wrong) or "all of them valid"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

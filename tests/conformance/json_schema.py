"""Holds the grammars of JSON Schemas to real schemas with valid and invalid instances.

A schema must compile, or be refused by name of its part, within two seconds; the compiled grammar must accept
every valid instance, in whatever order of keys it asks for, and reject every invalid one in all orders. The
exceptions stand by name in json_schema_exceptions.tsv; the run fails when the outcome differs from that file.

    python -m tests.conformance.json_schema [--sample N] [--write --published expected_maskbench.json]

The material is MaskBench's subset and the JSON Schema Test Suite, found as the tests find it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import lzma
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llguidance

from engines.base import Grammar, InvalidRequest
from engines.grammar import byte_tokenizer, check_grammar, compile_matcher
from tests.conftest import SHARED_DATA

EXCEPTIONS = Path(__file__).with_name("json_schema_exceptions.tsv")
DRAFTS = ("draft7", "draft2020-12")
SECONDS = 2.0
MOST_DEAD_ENDS = 500
"""Sets of keys left over after which no more orders are tried."""


@dataclass(frozen=True, slots=True)
class Case:
    """One schema; `instances` are values and whether they are valid."""

    name: str
    schema: Any
    instances: tuple[tuple[Any, bool], ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`fault` is empty when all was as it should be."""

    name: str
    fault: str
    seconds: float


def maskbench(data: Path) -> Iterator[Case]:
    with lzma.open(data / "jsonschema" / "maskbench-subset.jsonl.xz", "rt") as lines:
        for line in lines:
            found = json.loads(line)
            tests = tuple((test["data"], test["valid"]) for test in found["case"]["tests"])
            yield Case(f"maskbench/{found['file']}", found["case"]["schema"], tests)


def test_suite(data: Path) -> Iterator[Case]:
    """The drafts' required tests; what is optional there (formats, big numbers) is MaskBench's to test."""
    for draft in DRAFTS:
        for path in sorted((data / "jsonschema" / "test-suite" / draft).glob("*.json")):
            for group in json.loads(path.read_bytes()):
                tests = tuple((test["data"], test["valid"]) for test in group["tests"])
                yield Case(f"{draft}/{path.stem}: {group['description']}", group["schema"], tests)


def outcome(case: Case, tokenizer: llguidance.LLTokenizer) -> Outcome:
    """What our grammar does with a schema and its instances."""
    grammar = Grammar("json_schema", json.dumps(case.schema))
    started = time.process_time()
    try:
        check_grammar(grammar)
        fault = ""
    except InvalidRequest as error:
        fault = "refused: " + str(error).split("cannot be used: ", 1)[-1].replace("\n", " ").replace(
            "\t", " "
        )
    seconds = time.process_time() - started
    if not fault:
        matcher = compile_matcher(tokenizer, grammar)
        order = property_order(case.schema)
        wrong = [valid for value, valid in case.instances if accepts(matcher, value, order) != valid]
        parts = [f"rejects {wrong.count(True)} valid"] if True in wrong else []
        parts += [f"accepts {wrong.count(False)} invalid"] if False in wrong else []
        fault = ", ".join(parts)
    return Outcome(case.name, fault, seconds)


def shortened(text: str) -> str:
    """The head of a message, on one line."""
    return " ".join(text.split())[:100]


def property_order(schema: Any) -> dict[str, int]:
    """Names of properties and where they first stand: most grammars ask for keys in that order."""
    found: dict[str, int] = {}
    todo = [schema]
    while todo:
        part = todo.pop(0)
        if isinstance(part, Mapping):
            properties = part.get("properties")
            for name in properties if isinstance(properties, Mapping) else ():
                found.setdefault(name, len(found))
        if isinstance(part, Mapping | list):
            todo += part.values() if isinstance(part, Mapping) else part
    return found


def accepts(matcher: llguidance.LLMatcher, value: Any, order: Mapping[str, int]) -> bool:
    """Whether the grammar takes the value with the keys in some order: as they are first, then by `order`."""
    return _accepts(matcher, value, {}) or _accepts(matcher, value, order)


def _accepts(matcher: llguidance.LLMatcher, value: Any, order: Mapping[str, int]) -> bool:
    matcher.reset()
    try:
        return _Writer(matcher, order).write(value) and bool(matcher.is_accepting())
    except _Refused:
        return False


class _Refused(Exception):
    """The grammar does not take a value in its place."""


class _Writer:
    """Takes a matcher over values as far as it lets itself be taken."""

    def __init__(self, matcher: llguidance.LLMatcher, order: Mapping[str, int]) -> None:
        self._matcher = matcher
        self._order = order
        self._written = 0

    def write(self, value: Any) -> bool:
        if isinstance(value, Mapping):
            return self._take("{") and self._write_members(value)
        if isinstance(value, list):
            parts = (
                self._take(", " if index else "") and self.write(each) for index, each in enumerate(value)
            )
            return self._take("[") and all(parts) and self._take("]")
        return self._take(json.dumps(value, ensure_ascii=False))

    def _take(self, text: str) -> bool:
        data = text.encode()
        taken = self._matcher.try_consume_tokens(list(data))
        self._written += taken
        return bool(taken == len(data))

    def _back_to(self, written: int) -> None:
        self._matcher.rollback(self._written - written)
        self._written = written

    def _write_members(self, value: Mapping[str, Any]) -> bool:
        """An object after its brace: tries orders of keys until none is left over."""
        dead_ends: set[frozenset[str]] = set()

        def go_on(left: tuple[str, ...], before: str) -> bool:
            if not left:
                return self._take("}")
            if frozenset(left) in dead_ends or len(dead_ends) > MOST_DEAD_ENDS:
                return False
            for key in left:
                written = self._written
                head = f"{before}{json.dumps(key, ensure_ascii=False)}: "
                others = tuple(other for other in left if other != key)
                if self._take(head):
                    if not self.write(value[key]):
                        raise _Refused  # no other order would help
                    if go_on(others, ", "):
                        return True
                self._back_to(written)
            dead_ends.add(frozenset(left))
            return False

        return go_on(tuple(sorted(value, key=lambda key: self._order.get(key, len(self._order)))), "")


def listed() -> dict[str, str]:
    """The exceptions that are known: name and fault."""
    rows = (line.split("\t") for line in EXCEPTIONS.read_text().splitlines() if not line.startswith("#"))
    return {row[0]: row[1] for row in rows}


def write(outcomes: list[Outcome], published: Mapping[str, Any]) -> None:
    """Writes the list of exceptions, each with what the library publishes about the same schema."""
    lines = [
        "# Schemas that our grammars do not hold as they should, and what llguidance itself expects of the",
        "# same schema of MaskBench. Written by: python -m tests.conformance.json_schema --write",
    ]
    for each in outcomes:
        if each.fault:
            known = published.get(each.name.removeprefix("maskbench/"))
            said = "not listed" if known is None else "passes" if not known else next(iter(known.values()))
            lines.append(f"{each.name}\t{each.fault}\tllguidance: {shortened(said)}")
    EXCEPTIONS.write_text("\n".join(lines) + "\n")


def differences(outcomes: list[Outcome], known: Mapping[str, str]) -> Iterator[str]:
    """What is not as the list of exceptions says."""
    for each in outcomes:
        if each.fault != known.get(each.name, ""):
            yield f"{each.name}: {each.fault or 'passes'}; listed: {known.get(each.name) or 'passes'}"
        if each.seconds > SECONDS:
            yield f"{each.name}: took {each.seconds:.1f} s"


def report(outcomes: list[Outcome]) -> str:
    """One line for each collection."""
    lines = []
    for collection, group in itertools.groupby(outcomes, lambda each: each.name.split("/")[0]):
        found = Counter(each.fault.split(" ")[0].rstrip(":") or "right" for each in group)
        lines.append(f"{collection}: " + ", ".join(f"{count} {kind}" for kind, count in found.most_common()))
    slowest = max(outcomes, key=lambda each: each.seconds)
    return "\n".join([*lines, f"slowest to compile or refuse: {slowest.seconds:.2f} s, {slowest.name}"])


def run(data: Path, every: int = 1) -> list[Outcome]:
    """The outcomes of each `every`th case."""
    tokenizer = byte_tokenizer()
    cases = itertools.chain(maskbench(data), test_suite(data))
    return [outcome(case, tokenizer) for case in itertools.islice(cases, 0, None, every)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sample", type=int, default=1, help="take each Nth schema only")
    parser.add_argument("--write", action="store_true", help="write the list of exceptions anew")
    parser.add_argument("--published", type=Path, help="llguidance's json_stats/expected_maskbench.json")
    arguments = parser.parse_args()
    if not SHARED_DATA.is_dir():
        print(f"json_schema: no test material at {SHARED_DATA}; set GEMMULE_TEST_DATA to its folder")
        return 0
    outcomes = run(SHARED_DATA, arguments.sample)
    print(report(outcomes))
    if arguments.write:
        write(outcomes, json.loads(arguments.published.read_bytes()) if arguments.published else {})
        return 0
    wrong = list(differences(outcomes, listed()))
    print("\n".join(wrong) if wrong else "as listed in json_schema_exceptions.tsv")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs openai-python's own tests of the API against a live server with the scripted model.

The tests come with the source distribution of the version we test with; they are fetched at run time and kept
outside the project. What cannot pass is listed below, with the reason; all else must pass, and what is listed
must still fail. Ends with 1 otherwise. Called by `make conformance`:

    python -m tests.conformance.openai_python --python VENV/bin/python --cache FOLDER
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.gateway.live import live_server

VERSION = "3.52.0"
DIGEST = "258a4fec3e40b412c58672526ed33f20738c2e4ea27601792e73843af62466af"
HERE = Path(__file__).parent
SUITES = (
    "chat",
    "responses",
    "test_completions.py",
    "test_embeddings.py",
    "test_models.py",
    "test_responses.py",
)
ALIASES = "gpt-*=scripted,text-embedding-*=scripted,model=scripted"

EXCEPTIONS: Mapping[str, str] = {
    "chat/test_completions::*create_with_all_params*": (
        "asks for sound though modalities say text, for no tokens (max_tokens 0) and a bias of a token 'foo'"
    ),
    "test_completions::*create_with_all_params*": "asks for the best of 0 and for a bias of a token 'foo'",
    "test_embeddings::*_create[[]strict]": (
        "the client asks for base64 and checks the reply's types before it decodes it"
    ),
    "test_embeddings::*Async*_create[[]aiohttp]": (
        "the client asks for base64 and checks the reply's types before it decodes it"
    ),
    "chat/completions/test_messages::*.test_[mrs]*_list[[]*": (
        "types every message of a stored chat as the assistant's; the one stored is the user's, as in "
        "OpenAI's own example"
    ),
    "test_models::*.test_[mrs]*_delete[[]*": "deletes a fine-tuned model of OpenAI's service",
    "test_responses::*create_with_all_params*": (
        "continues a response and a conversation at once, with a prompt kept on OpenAI's service"
    ),
    "test_responses::*_create_overload_*": "asks for a response without a model and without input",
    "responses/test_input_tokens::*": "counts the tokens of no input for no model",
    "test_responses::*_compact[[]*": "compacts nothing at all, with a model of OpenAI's service",
    "test_responses::*_compact_with_all_params*": "POST /v1/responses/compact is not offered here",
}
"""Tests by name (`suite::Class.test[client]`), and why they cannot pass; the last could elsewhere."""


def sources(python: Path, cache: Path) -> Path:
    """The unpacked source distribution, fetched by pip the first time and held to its digest."""
    folder = cache / f"openai-{VERSION}"
    if not folder.is_dir():
        command = [str(python), "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "openai"]
        subprocess.run([*command, "-d", str(cache), f"openai=={VERSION}"], check=True)
        archive = cache / f"openai-{VERSION}.tar.gz"
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != DIGEST:
            raise SystemExit(f"{archive} has the digest {found}, not {DIGEST}")
        with tarfile.open(archive) as opened:
            opened.extractall(cache, filter="data")
    return folder


def run_suites(python: Path, folder: Path, report: Path) -> None:
    """Their pytest over our server; results go to `report` as JUnit XML."""
    with tempfile.TemporaryDirectory() as place, live_server(Path(place), GEMMULE_ALIASES=ALIASES) as server:
        environment = os.environ | {
            "TEST_API_BASE_URL": f"{server.url}/v1",
            "GEMMULE_ARCHIVE": str(Path(place) / "state" / "replies.sqlite"),
            "PYTHONPATH": str(HERE),
        }
        paths = [f"tests/api_resources/{suite}" for suite in SUITES]
        options = ["-q", "-o", "addopts=", "-p", "seeding", "--tb=no", f"--junitxml={report}"]
        command = [str(python), "-m", "pytest", *options, "-r", "N", *paths]
        subprocess.run(command, cwd=folder, env=environment, check=False)


def outcomes(report: Path) -> dict[str, bool]:
    """Whether each test passed, by name; tests their suite skips are left out."""
    found = {}
    for case in ET.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            suite, _, kind = case.attrib["classname"].removeprefix("tests.api_resources.").rpartition(".")
            name = f"{suite.replace('.', '/')}::{kind}.{case.attrib['name']}"
            found[name] = case.find("failure") is None and case.find("error") is None
    return found


def reason(name: str) -> str | None:
    """Why a test cannot pass."""
    return next((why for pattern, why in EXCEPTIONS.items() if fnmatch.fnmatchcase(name, pattern)), None)


def verdict(results: Mapping[str, bool]) -> Iterable[str]:
    """What is wrong: faults that are ours, and names in the list above that it need not hold."""
    for name, passed in results.items():
        if not passed and reason(name) is None:
            yield f"failed: {name}"
        if passed and reason(name) is not None:
            yield f"passed, though listed as an exception: {name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="an environment with requirements.txt")
    parser.add_argument("--cache", type=Path, required=True, help="where the tests are kept")
    arguments = parser.parse_args()
    python = arguments.python.absolute()
    folder = sources(python, arguments.cache.absolute())
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        run_suites(python, folder, report)
        results = outcomes(report)
    wrong = list(verdict(results))
    print(f"openai-python {VERSION}: {sum(results.values())} of {len(results)} tests passed")
    for why, count in Counter(reason(name) for name, passed in results.items() if not passed).items():
        print(f"  {count:4} failed: {why or 'by our fault'}")
    print("\n".join(wrong))
    return 1 if wrong or not results else 0


if __name__ == "__main__":
    sys.exit(main())

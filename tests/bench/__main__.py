"""Every bench, one after the other, and at the end all their figures in one line of JSON: `make bench`.

    python -m tests.bench [--only versus,serve] [--rounds 15] [--llama FOLDER] [--transformers PYTHON]

Each bench runs in a process of its own; what it prints is passed on, its last line is joined to the others'.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from tests.bench import llama, torch_peer
from tests.bench.versus import KEPT

BENCHES: dict[str, list[str]] = {
    "versus": ["--shapes", "270m,1b"],
    "versus-4b": ["--shapes", "4b", "--types", "Q8_0,Q4_K_M", "--cases", "one"],
    "serve": ["--shapes", "270m"],
    "loop": [],
    "startup": [],
    "kernels": [],
    "decode": [],
    "prefill": [],
    "gateway": [],
    "pull": [],
}
"""What is run and with what; the part of a name behind a dash tells two runs of one bench apart."""

COMPARING = ("versus", "serve")
KEEPING = ("versus", "serve", "loop", "startup")
NOT_JOINED = ("bench", "shape", "path", "threads", "seconds")


def command(name: str, options: argparse.Namespace) -> list[str]:
    """The command of one bench with the options it takes."""
    module = name.split("-")[0]
    found = [sys.executable, "-m", f"tests.bench.{module}", *BENCHES[name]]
    if module in KEEPING:
        found += ["--keep", options.keep]
    if module in COMPARING:
        found += ["--rounds", str(options.rounds), *(["--llama", options.llama] if options.llama else [])]
    if module == "versus" and options.transformers:
        found += ["--transformers", options.transformers]
    return found


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One bench; the figures of its last line. Raises CalledProcessError when it fails."""
    print(f"\n== {name}", flush=True)
    last = ""
    arguments = command(name, options)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line if line.startswith("{") else last
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments)
    return {key: value for key, value in json.loads(last).items() if key not in NOT_JOINED}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--llama", metavar="FOLDER", default=os.environ.get(llama.VARIABLE))
    parser.add_argument("--transformers", metavar="PYTHON", default=os.environ.get(torch_peer.VARIABLE))
    parser.add_argument("--keep", default=str(KEPT))
    options = parser.parse_args()
    joined: dict[str, Any] = {"bench": "all", "date": time.strftime("%Y-%m-%d"), "busy": []}
    for name in options.only.split(",") if options.only else BENCHES:
        found = run(name, options)
        joined["busy"] += found.pop("busy", [])
        joined |= found
    print(json.dumps(joined))


if __name__ == "__main__":
    main()

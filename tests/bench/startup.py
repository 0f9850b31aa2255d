"""Cold start: seconds from the first request to its first token, with and without compiled programs.

    python -m tests.bench.startup [--shape 1b] [--type Q8_0] [--repeats 3] [--keep FOLDER]

The server runs already, the model is in its store; the request makes it load. The first time nothing was ever
compiled; the second time the server is another process with the same folder of state. What reading the file
takes by itself is measured beside. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from functools import partial
from pathlib import Path

from tests.bench.serve import Request, create, gateway, together
from tests.bench.shapes import model_file, random_prompt
from tests.bench.versus import KEPT

PROMPT, TOKENS = 32, 8
PIECE = 16 << 20


def first_token(folder: Path, threads: int) -> float:
    """Seconds from the request that loads the model to its first token."""
    with gateway(folder, threads) as url:
        request = Request(random_prompt(PROMPT, time.monotonic_ns()), TOKENS)
        return together(int(url.rsplit(":", 1)[1]), [request], 1).first(0.5)


def reading(path: Path) -> float:
    """Seconds it takes to read the file and do nothing with it."""
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        for _ in iter(partial(file.read, PIECE), b""):
            pass
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, default=KEPT, help=f"where models and programs stay ({KEPT})")
    options = parser.parse_args()
    model = model_file(options.keep, options.shape, options.type).resolve()
    folder = options.keep.resolve() / f"startup-{options.shape}-{options.type}"
    shutil.rmtree(folder, ignore_errors=True)
    create(model, folder, options.threads)
    found: dict[str, list[float]] = {"first": [], "second": [], "reading": []}
    for _ in range(options.repeats):
        shutil.rmtree(folder / "state", ignore_errors=True)
        found["first"].append(first_token(folder, options.threads))
        found["second"].append(first_token(folder, options.threads))
        found["reading"].append(reading(model))
    shutil.rmtree(folder)
    middle = {name: statistics.median(values) for name, values in found.items()}
    print(f"first token of the {options.shape} shape, {options.type}, median of {options.repeats}")
    print(f"  the first time         {middle['first']:6.1f} s")
    print(f"  with compiled programs {middle['second']:6.1f} s")
    print(f"  reading the file alone {middle['reading']:6.1f} s")
    line = {f"cold_start_{name}_{options.shape}_s": round(value, 2) for name, value in middle.items()}
    print(json.dumps({"bench": "startup", **line}))


if __name__ == "__main__":
    main()

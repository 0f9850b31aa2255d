"""The script for a GPU tries itself: toy shapes, the GPU's forms, this machine's CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.gpu.bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=100)


@pytest.mark.slow
def test_the_bench_checks_and_counts_with_toy_shapes() -> None:
    done = run("--tiny", "--only", "bandwidth,products,nothing")
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["read_gb_per_second"] > 0
    assert 0 < row["error_reduce_q4_k"] < 1e-5 < row["error_dot_q4_k"] < 2e-2
    assert (row["failed"], done.returncode) == (["nothing"], 1)


@pytest.mark.slow
def test_the_bench_says_that_there_is_no_gpu() -> None:
    done = run()
    assert done.returncode == 2
    assert "no GPU here" in done.stderr

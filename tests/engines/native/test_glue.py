"""What lies between products: every path against numpy in float64, and the usable cores."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.decoder.native.cores import usable_cores
from engines.decoder.native.library import library, set_threads

ACTIVATIONS = {
    0: lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    1: lambda x: x / (1 + np.exp(-x)),
}


def glue(activation: int, arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    loaded: Any = library()
    out = np.full((4, len(arrays[0])), np.nan, np.float32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    size = ctypes.c_int64(len(arrays[0]))
    loaded.gemmule_glue(activation, *pointers, size, ctypes.c_void_p(out.ctypes.data))
    return out


def case(size: int, spread: float) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(size)
    x, up, scale = (random.normal(size=size).astype(np.float32) for _ in range(3))
    angles = random.uniform(0, 9, size // 2)
    return [x, up, scale * np.float32(spread), np.cos(angles).astype("f4"), np.sin(angles).astype("f4")]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("size", "spread"), [(2, 1.0), (34, 1.0), (64, 30.0), (640, 3.0)])
def test_glue_equals_numpy(path: str, activation: int, size: int, spread: float) -> None:
    arrays = case(size, spread)
    normal, rotated, gated, added = glue(activation, arrays).astype(np.float64)
    x, up, scale, cosine, sine = (array.astype(np.float64) for array in arrays)
    np.testing.assert_allclose(normal, x / np.sqrt((x**2).mean() + 1e-6) * scale, rtol=1e-6)
    first, second = normal[: size // 2], normal[size // 2 :]
    turned = np.concatenate([first * cosine - second * sine, second * cosine + first * sine])
    np.testing.assert_allclose(rotated, turned, rtol=1e-5, atol=1e-6 * spread)
    np.testing.assert_allclose(gated, ACTIVATIONS[activation](rotated) * up, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(added, gated + x, rtol=1e-6)


def test_vector_paths_agree(use_path: Callable[[str], str]) -> None:
    found = [glue(0, case(640, 2.0)) for path in ("avx512-vnni", "avx2") if use_path(path)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-7)


def test_not_a_number_is_not_hidden(path: str) -> None:
    arrays = case(64, 1.0)
    arrays[0][3] = np.nan
    assert np.isnan(glue(1, arrays)).all()


def write_topology(folder: Path, cores: dict[int, int]) -> Path:
    for processor, core in cores.items():
        own = folder / f"cpu{processor}" / "topology"
        own.mkdir(parents=True)
        (own / "physical_package_id").write_text("0\n")
        (own / "core_id").write_text(f"{core}\n")
    return folder


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_cores_are_counted_once_and_within_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5})
    topology = write_topology(tmp_path / "cpu", {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2})
    quota = tmp_path / "cpu.max"
    assert usable_cores(topology, quota) == 3
    for limit, cores in [("max 100000", 3), ("150000 100000", 2), ("50000 100000", 1)]:
        quota.write_text(limit + "\n")
        assert usable_cores(topology, quota) == cores
    assert usable_cores(tmp_path / "nothing", tmp_path / "no quota") == 6


def test_the_first_call_decides_the_number_of_threads() -> None:
    if library() is None:
        pytest.skip("the C++ kernels are not built (no compiler?)")
    threads = set_threads()
    assert threads >= 1 and set_threads(threads + 3) == threads

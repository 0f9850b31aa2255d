"""The kernels' instruction-set paths, one test after the other on each that this processor has."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engines.decoder.native.library import library

PATHS = ("avx512-bf16", "avx512-vnni", "avx2", "neon-dotprod", "portable")
NARROW = ("avx512-bf16",)
"""Paths that round queries and weights of bfloat16 keys and values to bfloat16, as the plain form does."""


@pytest.fixture
def use_path() -> Iterator[Callable[[str], str]]:
    """Makes the kernels take the path of a name, or skips where the processor has none; undone afterwards."""
    loaded: Any = library()
    if loaded is None:
        pytest.skip("the C++ kernels are not built (no compiler?)")
    loaded.gemmule_use_path.restype = ctypes.c_bool

    def use(name: str) -> str:
        if not loaded.gemmule_use_path(name.encode()):
            pytest.skip(f"this processor has no {name}")
        return name

    yield use
    loaded.gemmule_use_path(None)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, use_path: Callable[[str], str]) -> str:
    """Each path in turn."""
    return use_path(request.param)

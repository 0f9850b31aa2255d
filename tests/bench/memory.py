"""How fast this machine reads memory: the measure for decoding one stream, which is reading all weights once.

Two readers of buffers over 1 GiB: a bare loop in C on all threads, and our own Q8_0 product. Called by the
bench of engines, in every round, since the memory of a shared machine is not the same from minute to minute.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

BUFFER_BYTES = 1 << 30
INPUTS, OUTPUTS = 1024, 1 << 20
"""A Q8_0 matrix of 1.06 GiB."""

READER = """
#include <stdint.h>
#include <stddef.h>
uint64_t read_all(const uint64_t *words, size_t count) {
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i + 32 <= count; i += 32)
        for (size_t j = 0; j < 8; ++j) {
            a ^= words[i + j];
            b ^= words[i + 8 + j];
            c ^= words[i + 16 + j];
            d ^= words[i + 24 + j];
        }
    return a ^ b ^ c ^ d;
}
"""

Reader = Callable[[], float]
"""Reads its buffer once and returns bytes a second."""


def readers(threads: int) -> dict[str, Reader]:
    """Those this machine can have, by name; each was run once."""
    made = {"read": _bare_reader(threads), "q8": _product_reader()}
    found = {name: reader for name, reader in made.items() if reader is not None}
    for reader in found.values():
        reader()
    return found


def _bare_reader(threads: int) -> Reader | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder) / "reader.c", Path(folder) / "reader.so"
        source.write_text(READER)
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", str(source), "-o", str(built)]
        subprocess.run(command, check=True)
        library = ctypes.CDLL(str(built))
    library.read_all.restype = ctypes.c_uint64
    library.read_all.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    words = np.full(BUFFER_BYTES // 8, 1, np.uint64)
    parts = np.array_split(words, threads)
    pool = ThreadPoolExecutor(threads)

    def read() -> float:
        start = time.perf_counter()
        list(pool.map(lambda part: library.read_all(part.ctypes.data, len(part)), parts))
        return BUFFER_BYTES / (time.perf_counter() - start)

    return read


def _product_reader() -> Reader | None:
    import jax
    import jax.numpy as jnp

    from engines.decoder import native

    if native.available() is None:
        return None
    row = native.pack(np.ones((16, INPUTS // 32 * 34), np.uint8), "Q8_0", (16, INPUTS))
    packed = jnp.asarray(np.tile(row, (OUTPUTS // 16, 1)))
    x = jnp.ones((1, INPUTS), jnp.float32)
    product: Any = jax.jit(lambda x, w: native.quantized_matmul(x, w, "Q8_0", (OUTPUTS, INPUTS)))

    def read() -> float:
        start = time.perf_counter()
        product(x, packed).block_until_ready()
        return float(packed.nbytes / (time.perf_counter() - start))

    return read

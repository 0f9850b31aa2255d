"""The compiled kernels as a library: found, loaded once, its custom calls made known to JAX.

Knows storage types and the processor's instruction sets; called by the rest of the package.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

import jax
import numpy as np

from engines.decoder.native.cores import usable_cores
from engines.decoder.native.sources import digest
from modelfiles.gguf_types import GGML_TYPE_BY_NAME

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "src"

BLOCK_TYPES = ("Q8_0", "Q4_0", "Q4_K", "Q6_K", "BF16", "Q5_0", "IQ4_NL")
"""Storage types with a kernel. Q5_0 and IQ4_NL are packed as 8-bit codes, which hold them exactly."""

CUSTOM_CALLS = (
    "gemmule_matmul",
    "gemmule_rows",
    "gemmule_attention",
    "gemmule_write",
    "gemmule_attention_block",
    "gemmule_feed_forward_block",
)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library with its custom calls registered, or None; says once why it is missing."""
    built = [path for ending in ("so", "pyd") for path in Path(__file__).parent.glob(f"_kernels*.{ending}")]
    if not built:
        logger.warning(
            "the C++ kernels are not built, so weights are unpacked to float32 and decoding is several times "
            "slower; install a C++ compiler and run `python setup.py build_ext --inplace`"
        )
        return None
    newest = max(built, key=lambda path: path.stat().st_mtime)
    try:
        return _declared(ctypes.CDLL(str(newest)))
    except (OSError, AttributeError) as error:
        logger.warning("the C++ kernels cannot be used (%s), so XLA serves; build them again", error)
        return None


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """The library with its functions' types said; AttributeError where it was built from other sources."""
    loaded.gemmule_sources.restype = ctypes.c_int64
    here = digest(SOURCES)
    if here and loaded.gemmule_sources() != here:
        raise AttributeError("they were built from other sources")
    loaded.gemmule_path.restype = ctypes.c_char_p
    loaded.gemmule_packed_bytes.restype = ctypes.c_int64
    loaded.gemmule_packed_bytes.argtypes = [ctypes.c_int32, ctypes.c_int64, ctypes.c_int64]
    loaded.gemmule_pack.restype = None
    loaded.gemmule_pack.argtypes = [
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    loaded.gemmule_set_threads.restype = None
    loaded.gemmule_set_threads.argtypes = [ctypes.c_int32]
    loaded.gemmule_threads.restype = ctypes.c_int32
    capsules = {name: jax.ffi.pycapsule(getattr(loaded, name)) for name in CUSTOM_CALLS}  # type: ignore[no-untyped-call]
    for name, capsule in capsules.items():
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return loaded


def available() -> str | None:
    """The instruction-set path in use, or None.

    One of `avx512-bf16`, `avx512-vnni`, `avx2`, `neon-dotprod` and `portable`.
    """
    loaded = library()
    return None if loaded is None else str(loaded.gemmule_path().decode())


def storage_number(block_type: str) -> int:
    """GGUF's number of a storage type; ValueError naming those with a kernel for any other."""
    if block_type not in BLOCK_TYPES:
        raise ValueError(f"no kernel for {block_type}; there are kernels for {', '.join(BLOCK_TYPES)}")
    return int(GGML_TYPE_BY_NAME[block_type].id)


@functools.cache
def packed_format(block_type: str) -> np.int64:
    """The number of a storage type's layout in `src/layout.h`; the library must be there."""
    loaded = library()
    assert loaded is not None, "a packed matrix exists, so the library does"
    return np.int64(loaded.gemmule_format(storage_number(block_type)))


def set_threads(count: int = 0) -> int:
    """Starts the threads that share a product, 0 for one on each usable core; returns how many there are.

    The first call of a process decides: threads that work are not replaced.
    """
    loaded = library()
    if loaded is None:
        return 0
    loaded.gemmule_set_threads(count or usable_cores())
    return int(loaded.gemmule_threads())

"""The registry of kernels that replace an XLA form: (operation, block type, platform) -> function.

Kernels register themselves when their library loads; `quant` and `attention` look them up once, while
weights are loaded or a program is traced, and fall back to plain XLA. Knows nothing about any kernel.

Operations and their contracts (M rows of input, N outputs, K inputs):

    pack     (rows uint8 numpy [N, row bytes], (N, K)) -> numpy array or tuple of arrays; once, at load
    matmul   (x float32 [M, K], packed, (N, K)) -> float32 [M, N]; traced into programs
    rows     (packed, (N, K), ids int32 [M]) -> float32 [M, K]; embedding look-up from packed blocks
    write    (cache [slots+1, kv_heads, length, head_dim], fresh float32 [B, T, kv_heads, head_dim], slots
              int32 [B], positions int32 [B, T]) -> the cache, updated in place where it is donated
    attention (query float32 [B, T, heads, head_dim], keys, values [slots+1, kv_heads, length, head_dim],
              slots int32 [B], positions int32 [B, T], *, scale, softcap, window) -> like query;
              registered for int8 it also gets key_scales, value_scales float32 [slots+1, kv_heads, length]
    attention_block  (hidden float32 [B, T, D], a layer's weights, its matrices of q, k and v, cosine, sine
              [B, T, 1, head_dim / 2], keys, values, slots, positions, fused.AttentionShape)
              -> residual like hidden, keys, values; registered for the cache's type
    feed_forward_block  (hidden float32 [B, T, D], a layer's weights, its matrices of gate and up,
              fused.FeedForwardShape) -> residual like hidden; registered for the activation

`pack` and `rows` are optional: without `pack` the kernel gets the file's own rows, without `rows` the
table keeps the file's layout and is unpacked by XLA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Kernel = Callable[..., Any]

_kernels: dict[tuple[str, str, str], tuple[str, Kernel]] = {}


def register(op: str, block_type: str, platform: str, function: Kernel, name: str = "native") -> None:
    """Offers `function` for (op, block type, platform); a later registration replaces an earlier one."""
    _kernels[op, block_type, platform] = (name, function)


def unregister(op: str, block_type: str, platform: str) -> None:
    """Takes a kernel back (tests compare with and without)."""
    _kernels.pop((op, block_type, platform), None)


def lookup(op: str, block_type: str, platform: str) -> Kernel | None:
    """The registered kernel, or None: then the XLA form serves."""
    found = _kernels.get((op, block_type, platform))
    return found[1] if found else None


def kernel_names(platform: str) -> tuple[str, ...]:
    """Names of the kernels on a platform, for `Ready.kernels`."""
    return tuple(sorted({name for (_, _, where), (name, _) in _kernels.items() if where == platform}))

"""What the device does next, as a plain value: made by the scheduler, carried out by the programs.

A plan fully determines a device step (with the weights and what earlier plans left on the device), so that
a follower process could replay it. Pure Python: no arrays of a device, no clock, no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCORE_CHUNK = 64
"""Prompts whose own tokens' log-probabilities are wanted are computed in chunks of this size: their logits
are whole matrices, and one program is enough."""

SampleMode = Literal["greedy", "general"]
"""Which sampling program serves a group of rows: plain argmax, or everything a request can ask for."""


@dataclass(frozen=True, slots=True)
class SlotCopy:
    """Copies everything the cache holds for one slot into another."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Prompt tokens [start, start + len(token_ids)) of one sequence, padded to `bucket` on the device.

    `samples` says that this chunk ends the prompt and the first token is drawn from it. `score` asks for
    the log-probabilities of the chunk's own tokens. `adapter` numbers a LoRA adapter, 0 for none.
    """

    request_id: int
    slot: int
    start: int
    token_ids: tuple[int, ...]
    bucket: int
    samples: bool
    mode: SampleMode = "greedy"
    score: bool = False
    adapter: int = 0


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One running sequence: its last token, which the device remembers, is at `position`."""

    request_id: int
    slot: int
    position: int
    adapter: int = 0


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows that share one forward pass and one sampling pass, padded to `bucket` rows."""

    rows: tuple[DecodeRow, ...]
    bucket: int
    mode: SampleMode


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One device step, in this order: `copies`, `prefill`, `decode`, `stores`."""

    copies: tuple[SlotCopy, ...] = ()
    prefill: tuple[PrefillChunk, ...] = ()
    decode: tuple[DecodeGroup, ...] = ()
    stores: tuple[SlotCopy, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.copies or self.prefill or self.decode or self.stores)

    @property
    def prefill_tokens(self) -> int:
        return sum(len(chunk.token_ids) for chunk in self.prefill)

    @property
    def decode_rows(self) -> int:
        return sum(len(group.rows) for group in self.decode)


@dataclass(frozen=True, slots=True)
class Buckets:
    """Sizes that programs were compiled for, each ascending: prompt tokens per chunk, rows per step."""

    prefill: tuple[int, ...]
    decode: tuple[int, ...]


def smallest_holding(sizes: tuple[int, ...], count: int) -> int:
    """The smallest of ascending `sizes` that holds `count`, else the largest."""
    return next((size for size in sizes if size >= count), sizes[-1])

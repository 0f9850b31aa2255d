"""Which device serves, how much memory models may use there, and what to say about it at the start.

Asks the operating system and `nvidia-smi`, never JAX. Called by `server` and `doctor`.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Literal

import psutil

HOST_SHARE = 0.7
"""Of the memory free at the start; the rest is for the file cache, the gateway and everyone else."""

GPU_SHARE = 0.92
"""Of a GPU's memory; the rest holds CUDA contexts and the compiler's scratch space."""

SMI_SECONDS = 20
"""The tool's first answer takes seconds where the driver is not kept loaded."""

QUERY = (
    "nvidia-smi",
    "--query-gpu=index,uuid,driver_version,memory.total,memory.free,name",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics card as its driver reports it; sizes in bytes, 0 where the driver does not tell them."""

    index: int
    name: str
    driver: str
    total_bytes: int
    free_bytes: int
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """Where models run: `budget` bytes for all of them together; `warning` is for the start line."""

    kind: Literal["cpu", "gpu"]
    name: str
    budget: int
    index: int = 0
    warning: str | None = None


def find_gpus(visible: str | None = None) -> list[Gpu]:
    """The cards `nvidia-smi` lists; none when it is missing or has nothing to say.

    `visible` is CUDA_VISIBLE_DEVICES, which that tool does not heed: numbers or (starts of) UUIDs, where the
    first one that names no card ends the list. None: all.
    """
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = [gpu for line in done.stdout.splitlines() if (gpu := _parse(line))]
    return gpus if visible is None else _named(gpus, visible)


def _parse(line: str) -> Gpu | None:
    fields = [field.strip() for field in line.split(",", 5)]
    if len(fields) != 6 or not fields[0].isdigit():
        return None
    sizes = [int(field) * 2**20 if field.isdigit() else 0 for field in fields[3:5]]
    return Gpu(int(fields[0]), fields[5], fields[2], sizes[0], sizes[1], fields[1])


def _named(gpus: list[Gpu], visible: str) -> list[Gpu]:
    found = []
    for name in (part.strip() for part in visible.split(",")):
        named = [gpu for gpu in gpus if name == str(gpu.index) or (name and gpu.uuid.startswith(name))]
        if len(named) != 1:
            break
        found += named
    return found


def has_cuda_build() -> bool:
    """Whether the CUDA plugin of JAX is installed, without importing JAX."""
    from importlib.util import find_spec

    return any(find_spec(name) is not None for name in ("jax_cuda13_plugin", "jax_cuda12_plugin"))


def choose_device(
    wanted: Literal["auto", "cpu", "gpu"], limit: int, overhead: int, gpus: list[Gpu], cuda: bool
) -> Device:
    """The device for `GEMMULE_DEVICE`, with `limit` bytes (0 for automatic) less `overhead` as its budget.

    Raises ValueError when a GPU is demanded and cannot be had.
    """
    usable = bool(gpus) and cuda
    if wanted == "gpu" and not usable:
        reason = "nvidia-smi lists no GPU" if not gpus else "the CUDA build of JAX is not installed"
        raise ValueError(f"GEMMULE_DEVICE=gpu, but {reason}; install with the `cuda` extra or unset it")
    if wanted != "cpu" and usable:
        best = max(gpus, key=lambda gpu: gpu.free_bytes)
        share = int(min(best.total_bytes * GPU_SHARE, best.free_bytes)) if best.total_bytes else host_budget()
        budget = limit or share - overhead
        return Device("gpu", f"{best.name} (driver {best.driver})", max(0, budget), best.index)
    warning = None
    if gpus and wanted == "auto":
        warning = (
            f"{gpus[0].name} is here but unused: the CUDA build of JAX is missing; run `make setup` again"
        )
    return Device(
        "cpu", f"{psutil.cpu_count(logical=False) or 1} CPU cores", limit or host_budget(), 0, warning
    )


def host_budget() -> int:
    """Bytes of host memory that models may use: a share of what is available now."""
    return int(psutil.virtual_memory().available * HOST_SHARE)

"""How many cores this process may use: its affinity, one per physical core, and its container's quota.

Two threads of one core share the units that the kernels keep busy, so a second thread there only costs.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(topology: Path = TOPOLOGY, quota: Path = QUOTA) -> int:
    """Physical cores among the processors this process may run on, at most its quota; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        processors = os.sched_getaffinity(0)
    else:
        processors = set(range(os.cpu_count() or 1))
    cores = {_core_of(topology, number) for number in processors}
    return max(1, min(len(cores), _quota(quota)))


def _core_of(topology: Path, processor: int) -> tuple[str, str]:
    """Package and core of a processor; one of its own where the system does not say."""
    folder = topology / f"cpu{processor}" / "topology"
    try:
        return (folder / "physical_package_id").read_text().strip(), (folder / "core_id").read_text().strip()
    except OSError:
        return "processor", str(processor)


def _quota(file: Path) -> int:
    """Whole processors of a control group's limit (`150000 100000`: 2); a large number without one."""
    try:
        limit, period = file.read_text().split()
        return math.ceil(int(limit) / int(period))
    except (OSError, ValueError):  # no control group, or "max"
        return 1 << 16

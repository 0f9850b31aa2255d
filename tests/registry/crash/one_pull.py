"""Pulls one model: `python -m tests.registry.crash.one_pull ROOT REFERENCE CONNECTIONS LEAST_PART`, a process
of its own that tests kill, and whose memory they measure: it prints the most it took, in MiB."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from registry.pull import ClientSettings, Puller
from registry.store import Store
from tests.registry.conftest import describe


async def main() -> int:
    """The pull."""
    root, reference, connections, least_part = sys.argv[1:5]
    settings = ClientSettings(
        connections=int(connections), least_part=int(least_part), stall_timeout=60.0, backoff=0.01
    )
    puller = Puller(Store.open(Path(root)), settings, describe)
    try:
        async for _ in puller.pull(reference):
            pass
    finally:
        await puller.close()
    print(most_memory())
    return 0


def most_memory() -> int:
    """MiB this process took at most; `ru_maxrss` would count what its parent had when it started this."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) // 1024


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

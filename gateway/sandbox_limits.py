"""What a sandbox worker gives up before it sees a stranger's bytes: memory, time, files, the network.

Best effort where the system has no such limit. Called by `sandbox_worker` in its own process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

PRIVATE_MEMORY = 3 * 2**30
"""Bytes of private memory a worker may have. Mapped weight files do not count (RLIMIT_AS counts them)."""


def limit_process() -> None:
    """Bounds private memory, core files and descriptors, and leaves the network where the system allows."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
        resource.setrlimit(kind, (PRIVATE_MEMORY, PRIVATE_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    if sys.platform == "linux":
        _leave_network()
        _die_with_parent()


def limit_processor_time(seconds: float) -> None:
    """Lets the process use `seconds` more of processor time (plus one) before the system ends it."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime + seconds) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def limit_file_size(most: int) -> None:
    """Makes writing beyond `most` bytes of a file an OSError."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def _leave_network() -> None:
    """A network of its own with nothing in it; needs a privilege or user namespaces, so it may not work."""
    import ctypes

    new_net, new_user = 0x40000000, 0x10000000
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(new_net) != 0 and os.geteuid() != 0:
            libc.unshare(new_user | new_net)


def _die_with_parent() -> None:
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

"""`quantize` of create: which types there are, and the worker that writes weights in one of them.

The worker is a sandbox of its own, ended with the request: the shared ones answer prompts meanwhile. Called
by `progress`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gateway.errors import BadRequest
from gateway.sandbox import Sandbox, SandboxError
from gateway.sandbox_calls import Quantize as QuantizeCall
from modelfiles.files import ModelFile
from registry.create import Quantize
from registry.errors import DiskFull

KINDS = {"Q4_0": "q4_0", "Q4_K_M": "q4_K_M", "Q4_K": "q4_K_M", "Q8_0": "q8_0"}
"""Types as they are shown, and the mixture of the engine that makes each; Q4_K is Ollama's short form."""

START_SECONDS = 120.0
WRITTEN_BYTES_PER_SECOND = 2e6
"""Bytes of float weights that the slowest type gets through on a slow core."""
HEADER_BYTES = 256 << 20
"""Room for a vocabulary and other metadata in the written file."""


def quantization(wanted: str | None) -> Quantize | None:
    """What the field `quantize` asks for, in any case of letters. Raises BadRequest for an unknown type."""
    if not wanted:
        return None
    name = wanted.upper()
    if name not in KINDS:
        shown = ", ".join(name for name, kind in KINDS.items() if name == kind.upper())
        raise BadRequest(
            f"unsupported quantization type {wanted[:40]} - supported types are {shown}", param="quantize"
        )

    async def write(files: Sequence[ModelFile], path: Path) -> None:
        size = sum(file.size for file in files)
        call = QuantizeCall(tuple(files), str(path), KINDS[name], size + HEADER_BYTES)
        sandbox = Sandbox(1)
        try:
            await sandbox.warm()  # from here on `close` ends it, whenever the caller leaves
            await sandbox.call(call, bool, START_SECONDS + size / WRITTEN_BYTES_PER_SECOND)
        except SandboxError as error:
            if error.kind_of_error == "OSError":  # numpy does not say why it could not write
                raise DiskFull(size, -1) from error
            raise
        finally:
            await sandbox.close()

    return Quantize(KINDS[name].upper(), write)

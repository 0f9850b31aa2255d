"""What each model can do, for the list of models: detected from weights and template, never awaited long.

Detection opens the weight files' headers in a sandbox worker. Results are kept by manifest digest; those not
ready in time are left out of this list and are there in the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from gateway.catalog import Catalog
from registry.model import Model

PATIENCE_SECONDS = 0.15
REMEMBERED = 4096

log = logging.getLogger("gemmule.gateway")


class CapabilityMemory:
    """Capabilities by manifest digest. One for each process; owned by the event loop."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, ...]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def look_up(self, catalog: Catalog, models: Iterable[Model]) -> dict[str, tuple[str, ...]]:
        """What is known of these models by now, or after a moment of waiting."""
        wanted = {model.digest: model for model in models}
        for digest, model in wanted.items():
            if digest not in self._known and digest not in self._asking:
                self._asking[digest] = asyncio.ensure_future(self._detect(catalog, model))
        pending = [self._asking[digest] for digest in wanted if digest in self._asking]
        if pending:
            await asyncio.wait(pending, timeout=PATIENCE_SECONDS)
        return {digest: self._known[digest] for digest in wanted if digest in self._known}

    async def _detect(self, catalog: Catalog, model: Model) -> None:
        try:
            served = await catalog.get(model.name.display())
            self._known[model.digest] = served.capabilities
        except Exception as error:
            log.warning("cannot tell what %s can do: %s", model.name, error)
            self._known[model.digest] = ()
        finally:
            self._asking.pop(model.digest, None)
            while len(self._known) > REMEMBERED:
                del self._known[next(iter(self._known))]

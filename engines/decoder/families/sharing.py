"""Which layers read the keys and values of others: the rule of Gemma 3n and 4, for every container."""

from __future__ import annotations

from engines.decoder.config import ConfigError, LayerKind


def kv_sources(kinds: tuple[LayerKind, ...], shared: int) -> tuple[int | None, ...]:
    """Whose keys each layer reads when the last `shared` layers have none of their own.

    A sharing layer reads the last layer of its own kind before the sharing begins.
    """
    first = len(kinds) - shared
    if not 0 <= shared < len(kinds) or any(kind not in kinds[:first] for kind in kinds[first:]):
        raise ConfigError(
            f"{shared} of {len(kinds)} layers share keys, but no layer of their kind has its own"
        )
    last = {kind: index for index, kind in enumerate(kinds[:first])}
    return tuple(last[kind] if index >= first else None for index, kind in enumerate(kinds))

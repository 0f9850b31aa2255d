"""Typed reading of foreign mappings: a missing or mistyped key is a ConfigError that names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.decoder.config import ConfigError


@dataclass(frozen=True, slots=True)
class Keys:
    """A mapping of a foreign format; `prefix` is put before every key, `source` names it in errors."""

    values: Mapping[str, Any]
    source: str
    prefix: str = ""

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value; JSON null counts as absent."""
        value = self.values.get(self.prefix + key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self._number(key, default))

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._number(key, default))

    def optional_number(self, key: str) -> float | None:
        value = self.get(key)
        return None if value is None else float(value)

    def boolean(self, key: str, default: bool) -> bool:
        return bool(self.get(key, default))

    def per_layer(self, key: str, layers: int, default: int | None = None) -> tuple[int, ...]:
        """An integer for every layer, given as one number or a list."""
        value = self.get(key, default)
        if hasattr(value, "__len__") and not isinstance(value, str):  # a list or a numpy array
            if len(value) < layers:
                raise ConfigError(
                    f"{self.source} {self.prefix}{key} has {len(value)} values for {layers} layers"
                )
            return tuple(int(item) for item in value[:layers])
        return (self.integer(key, default),) * layers

    def _number(self, key: str, default: float | None) -> float | int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            problem = "is missing" if value is None else f"is {value!r}, not a number"
            raise ConfigError(f"{self.source}: {self.prefix}{key} {problem}")
        return value


def check_sizes(source: str, **sizes: int) -> None:
    """Refuses sizes that cannot be: a hostile or broken file must not become an allocation."""
    for name, size in sizes.items():
        if not 0 < size <= 1 << 31:
            raise ConfigError(f"{source}: {name} is {size}, which no model has")

"""The model that comes with gemmule: `bud.gguf` and its Modelfile. Data only; read by whoever fills a store."""

from __future__ import annotations

from pathlib import Path

MODELFILE = Path(__file__).with_name("Modelfile")
"""What `create` is given to make bud."""

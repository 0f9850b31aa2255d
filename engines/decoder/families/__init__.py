"""The only readers of foreign architecture keys: config.json, GGUF metadata and Flax tree shapes.

Each turns one format into a `DecoderConfig`; a new family is a row in each reader's table. No JAX here.
"""

"""Reads what is written inside a model: bytes and text to values. No network, no asyncio, no JAX."""

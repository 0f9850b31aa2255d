"""Speaks HTTP: the OpenAI, Ollama and Anthropic dialects at the edge, one canonical request within."""

__version__ = "0.1.0"

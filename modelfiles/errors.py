"""Errors of this package that more than one module raises.

ValueError
├── GgufError, SafetensorsError     (gguf, safetensors)
├── TokenizerError                  (tokenizer_base)
├── ModelfileError, ParameterError  (modelfile, parameters)
└── DescribeError                   here
"""

from __future__ import annotations

__all__ = ["DescribeError"]


class DescribeError(ValueError):
    """The files are no model we can describe; the message says why and what would do."""

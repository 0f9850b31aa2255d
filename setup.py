"""Builds the C++ CPU kernels with the package. Everything else is said in pyproject.toml.

The extension is optional: without a C++ compiler the installation succeeds and XLA does the work. One library
holds every instruction-set path and chooses at run time, so that a wheel runs on any machine of its kind.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("engines/decoder/native/src")


def digest() -> int:
    """The number that the library carries and `library.py` compares with the sources beside it."""
    spec = importlib.util.spec_from_file_location("sources", SOURCES.parent / "sources.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return int(module.digest(SOURCES))


def kernels() -> list[Extension]:
    """The extension, where jaxlib's headers are at hand to build it against."""
    try:
        import jaxlib
    except ImportError:
        sys.stderr.write("warning: jaxlib is not installed here, so the C++ kernels are not built\n")
        return []
    posix = os.name == "posix"
    return [
        Extension(
            "engines.decoder.native._kernels",
            sources=[str(path) for path in sorted(SOURCES.glob("*.cc"))],
            depends=[str(path) for path in sorted(SOURCES.glob("*.h"))],
            include_dirs=[str(Path(jaxlib.__file__).parent / "include")],
            define_macros=[("GEMMULE_SOURCES", str(digest()))],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-pthread"] if posix else ["/std:c++17", "/O2"],
            extra_link_args=["-pthread"] if posix else [],
            optional=True,
        )
    ]


setup(ext_modules=kernels())

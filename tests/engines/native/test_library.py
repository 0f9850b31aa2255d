"""A library that was built from other sources is refused: the layouts of packed weights may differ."""

from __future__ import annotations

import ctypes
import importlib
import shutil
from pathlib import Path

import pytest

from engines.decoder.native.sources import digest

kernels = importlib.import_module("engines.decoder.native.library")  # the package has a function of that name


def test_the_digest_tells_sources_apart(tmp_path: Path) -> None:
    assert digest(tmp_path) == 0
    shutil.copytree(kernels.SOURCES, tmp_path / "src")
    assert digest(tmp_path / "src") == digest(kernels.SOURCES) != 0
    changed = tmp_path / "src" / "layout.h"
    changed.write_text(changed.read_text() + "// changed\n")
    assert digest(tmp_path / "src") != digest(kernels.SOURCES)


def test_a_library_of_other_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = kernels.library()
    if loaded is None:
        pytest.skip("the C++ kernels are not built here")
    shutil.copytree(kernels.SOURCES, tmp_path / "src")
    (tmp_path / "src" / "added.h").write_text("")
    monkeypatch.setattr(kernels, "SOURCES", tmp_path / "src")
    with pytest.raises(AttributeError, match="built from other sources"):
        kernels._declared(ctypes.CDLL(loaded._name))

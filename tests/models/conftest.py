"""Fixtures of the model's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ablatrix.models import native


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the compiled kernels; skips where they cannot be used."""
    if native.vectors() not in native.VECTORS or not shutil.which("g++"):
        pytest.skip("needs AVX2 and g++")
    return tmp_path_factory.mktemp("kernels")

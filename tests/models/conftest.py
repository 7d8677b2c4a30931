"""Fixtures of the model's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the compiled kernels; skips where they cannot be used."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not shutil.which("g++"):
        pytest.skip("needs AVX-512 and g++")
    return tmp_path_factory.mktemp("kernels")

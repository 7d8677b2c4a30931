"""The choice and compilation of the C++ kernels by processor."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ablatrix.models import compiled_attention, compiled_gelu, compiled_head, native


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_folder", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize("source", [compiled_head.FLOAT32, compiled_attention.SOURCE, compiled_gelu.SOURCE])
def test_every_kind_of_processor_has_its_own_library(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are compiled and loaded, which needs no such processor, but not called."""
    names = []
    for vectors in native.VECTORS:
        monkeypatch.setattr(native, "vectors", lambda vectors=vectors: vectors)
        library = native.load(source)
        assert library
        names.append(library._name)
    assert len(set(names)) == len(native.VECTORS)


def test_other_processors_use_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "vectors", lambda: "DEFAULT")
    weight = torch.zeros(compiled_head.MIN_WORDS, 48)
    assert not native.load(compiled_gelu.SOURCE)
    assert not any(compiled_head.find(weight, dtype, needs_grad=True) for dtype in (torch.float32, torch.bfloat16))


def test_without_amx_bfloat16_heads_are_computed_in_float32(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_folder", kernels)
    if native.vectors() != "AVX2":
        pytest.skip("needs a processor without AVX-512")
    for width in (48, 1024):
        weight = torch.zeros(compiled_head.MIN_WORDS, width)
        assert compiled_head.find(weight, torch.bfloat16, needs_grad=True) is compiled_head.CompiledHeadLoss
    assert compiled_head.find(weight, torch.float32, needs_grad=True) is None

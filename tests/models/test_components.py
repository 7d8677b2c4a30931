"""Each toggle's component against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from models.config import GPTConfig, swiglu_hidden
from models.feedforward import GELUFeedForward, SwiGLUFeedForward
from models.norms import RMSNorm, build_norm
from models.positions import Rotary


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_rms_norm_equals_torch() -> None:
    x = torch.randn(4, 7, 24) * torch.logspace(-3, 3, 7)[:, None]
    norm = RMSNorm(24)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (24,), norm.weight, eps=1e-5), rtol=1e-6, atol=1e-6)


def test_rms_norm_gradients_equal_torch() -> None:
    x = torch.randn(5, 16, requires_grad=True)
    norm, upstream = RMSNorm(16), torch.randn(5, 16)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
    ours = torch.autograd.grad(norm(x), (x, norm.weight), upstream)
    theirs = torch.autograd.grad(F.rms_norm(x, (16,), norm.weight, eps=1e-5), (x, norm.weight), upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_build_norm_follows_the_toggle() -> None:
    config = GPTConfig(model_type="gpt-nano")
    assert isinstance(build_norm(config.model_copy(update={"rmsnorm": True, "n_embd": 48})), RMSNorm)
    assert isinstance(build_norm(config.model_copy(update={"n_embd": 48})), torch.nn.LayerNorm)


class TestRotary:
    def test_turns_each_pair_by_its_angle(self) -> None:
        x = torch.randn(5, 8)
        out = Rotary(8, 16)(x)
        for t in range(5):
            for i in range(4):
                angle = t * 10000 ** (-2 * i / 8)
                a, b = float(x[t, i]), float(x[t, i + 4])
                assert float(out[t, i]) == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-6)
                assert float(out[t, i + 4]) == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-6)

    def test_keeps_norms(self) -> None:
        x = torch.randn(2, 3, 1024, 64)
        torch.testing.assert_close(Rotary(64, 1024)(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=1e-5)

    def test_scores_depend_on_the_distance_only(self) -> None:
        rotary = Rotary(16, 1024)
        q, k = torch.randn(16), torch.randn(16)
        turned_q, turned_k = rotary(q.expand(1024, 16)), rotary(k.expand(1024, 16))
        scores = turned_q @ turned_k.T  # (T, T)
        for distance in (0, 1, 17, 900):
            diagonal = scores.diagonal(-distance)
            torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=2e-5)
        assert not torch.allclose(scores[0], scores[0, :1].expand(1024), atol=1e-2)

    def test_start_offset(self) -> None:
        rotary, x = Rotary(8, 32), torch.randn(20, 8)
        assert torch.equal(rotary(x)[12:], rotary(x[12:], start=12))

    def test_tables_are_not_in_the_state_dict(self) -> None:
        assert not Rotary(8, 32).state_dict()


class TestFeedForward:
    def test_swiglu_formula(self) -> None:
        layer = SwiGLUFeedForward(16, 0.0).double()
        x = torch.randn(3, 16, dtype=torch.float64)
        hidden = swiglu_hidden(16)
        (w, v), (b, c) = layer.c_fc.weight.split(hidden), layer.c_fc.bias.split(hidden)
        gate, value = x @ w.T + b, x @ v.T + c
        expected = (gate / (1 + torch.exp(-gate)) * value) @ layer.c_proj.weight.T + layer.c_proj.bias
        torch.testing.assert_close(layer(x), expected)

    @pytest.mark.parametrize("n_embd", [48, 128, 192, 768, 1600])
    def test_swiglu_has_the_gelu_layers_parameters(self, n_embd: int) -> None:
        with torch.device("meta"):
            gelu, swiglu = GELUFeedForward(n_embd, 0.0), SwiGLUFeedForward(n_embd, 0.0)
        ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (swiglu, gelu))
        assert ours == pytest.approx(theirs, rel=0.01)

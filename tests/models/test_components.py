"""Each component against its paper's formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ablatrix.models.config import GPTConfig, gated_hidden
from ablatrix.models.feedforward import build_feedforward
from ablatrix.models.norms import RMSNorm
from ablatrix.models.positions import SINUSOIDAL_SCALE as SCALE
from ablatrix.models.positions import LearnedPositions, Rotary, Sinusoidal, build_positions

Activation = Callable[[torch.Tensor], torch.Tensor]


def component(**changes: Any) -> GPTConfig:
    sizes = {"n_layer": 1, "n_head": 4, "n_embd": 16, "resid_pdrop": 0.0}
    return GPTConfig.model_validate({**sizes, **changes}).resolved(11, 8)


def filled(module: Any) -> Any:
    """In float64, with random weights: layers are made without any."""
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


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

    def test_start_offset(self) -> None:
        rotary, x = Rotary(8, 32), torch.randn(20, 8)
        assert torch.equal(rotary(x)[12:], rotary(x[12:], start=12))

    def test_beyond_the_table(self) -> None:
        x = torch.randn(2, 40, 8)
        assert torch.equal(Rotary(8, 8)(x), Rotary(8, 64)(x))
        assert torch.equal(Rotary(8, 8)(x[:, 30:], start=30), Rotary(8, 64)(x)[:, 30:])


class TestSinusoidal:
    @pytest.mark.parametrize("n_embd", [16, 7])
    @pytest.mark.parametrize("length", [5, 12])
    def test_adds_the_papers_table_beyond_the_block_as_well(self, n_embd: int, length: int) -> None:
        x = torch.randn(2, length, n_embd)
        added = (Sinusoidal(n_embd, 8)(x) - x) / SCALE
        for t in range(length):
            for i in range(n_embd):
                angle = t / 10000 ** ((i - i % 2) / n_embd)
                expected = math.cos(angle) if i % 2 else math.sin(angle)
                assert float(added[0, t, i]) == pytest.approx(expected, abs=2e-5)
                assert float(added[1, t, i]) == pytest.approx(expected, abs=2e-5)


def test_learned_positions_are_rows_of_a_table() -> None:
    layer = build_positions(component(positions="learned"))
    assert isinstance(layer, LearnedPositions)
    with torch.no_grad():
        layer.weight.normal_()
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(layer(x), x + layer.weight[:5])


def phi(x: torch.Tensor) -> torch.Tensor:
    """GELU in GPT-2's tanh approximation."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class TestFeedForward:
    @pytest.mark.parametrize(
        ("name", "activation"), [("gelu", phi), ("relu2", lambda x: torch.where(x > 0, x * x, torch.zeros_like(x)))]
    )
    @pytest.mark.parametrize("bias", [True, False])
    def test_plain(self, name: str, activation: Activation, bias: bool) -> None:
        layer = filled(build_feedforward(component(feedforward=name, bias=bias)))
        x = torch.randn(3, 16, dtype=torch.float64)
        w1, w2 = layer.c_fc.weight, layer.c_proj.weight
        assert w1.shape == (64, 16)
        b1, b2 = (layer.c_fc.bias, layer.c_proj.bias) if bias else (0.0, 0.0)
        torch.testing.assert_close(layer(x), activation(x @ w1.T + b1) @ w2.T + b2)

    @pytest.mark.parametrize(
        ("name", "gate"),
        [
            ("swiglu", lambda x: x / (1 + torch.exp(-x))),
            ("geglu", phi),
            ("reglu", lambda x: torch.where(x > 0, x, torch.zeros_like(x))),
        ],
    )
    @pytest.mark.parametrize("bias", [True, False])
    def test_gated(self, name: str, gate: Activation, bias: bool) -> None:
        layer = filled(build_feedforward(component(feedforward=name, bias=bias)))
        x = torch.randn(3, 16, dtype=torch.float64)
        hidden = gated_hidden(16, bias)
        w, v = layer.c_fc.weight.split(hidden)
        b, c = layer.c_fc.bias.split(hidden) if bias else (0.0, 0.0)
        out = layer.c_proj.bias if bias else 0.0
        expected = (gate(x @ w.T + b) * (x @ v.T + c)) @ layer.c_proj.weight.T + out
        torch.testing.assert_close(layer(x), expected)

    @pytest.mark.parametrize("n_embd", [48, 128, 192, 768, 1600])
    @pytest.mark.parametrize("bias", [True, False])
    def test_gated_layers_have_the_plain_ones_parameters(self, n_embd: int, bias: bool) -> None:
        with torch.device("meta"):
            layers = [
                build_feedforward(component(n_embd=n_embd, feedforward=name, bias=bias)) for name in ("gelu", "geglu")
            ]
        plain, gated = (sum(p.numel() for p in m.parameters()) for m in layers)
        assert gated == pytest.approx(plain, rel=0.01)

"""The whole model: against the papers' formulas, its sizes, its initial weights, its samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ablatrix.models.config import PRESETS, GPTConfig, count_parameters
from ablatrix.models.gpt import GPT
from ablatrix.models.head_loss import IGNORE
from ablatrix.models.layers import Dropout

TOGGLES = ({}, {"swiglu": True}, {"rmsnorm": True}, {"rope": True}, {"swiglu": True, "rmsnorm": True, "rope": True})


def tiny(**changes: object) -> GPTConfig:
    sizes = {"model_type": None, "n_layer": 2, "n_head": 3, "n_embd": 12, "vocab_size": 31, "block_size": 9}
    return GPTConfig.model_validate({**sizes, **changes})


def shaken(config: GPTConfig) -> GPT:
    """A model whose biases and norms are not at their initial 0 and 1, so that forgetting one shows."""
    model = GPT(config, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


class Reference:
    """GPT-2 from the formulas, one position and one head at a time, in float64."""

    def __init__(self, model: GPT) -> None:
        self.w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
        self.config = model.config

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return np.array([self.w[name + ".weight"] @ row + self.w[name + ".bias"] for row in x])

    def layer_norm(self, x: np.ndarray, name: str) -> np.ndarray:
        out = []
        for row in x:
            mean = sum(row) / len(row)
            variance = sum((v - mean) ** 2 for v in row) / len(row)
            out.append((row - mean) / math.sqrt(variance + 1e-5) * self.w[name + ".weight"] + self.w[name + ".bias"])
        return np.array(out)

    def attention(self, x: np.ndarray, name: str) -> np.ndarray:
        heads, width = self.config.n_head, x.shape[1]
        size = width // heads
        qkv = self.linear(x, name + ".c_attn")
        out = np.zeros_like(x)
        for h in range(heads):
            q, k, v = (qkv[:, part * width + h * size : part * width + (h + 1) * size] for part in range(3))
            for t in range(len(x)):
                scores = np.array([q[t] @ k[s] / math.sqrt(size) for s in range(t + 1)])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[t, h * size : (h + 1) * size] = sum(weights[s] * v[s] for s in range(t + 1))
        return self.linear(out, name + ".c_proj")

    def mlp(self, x: np.ndarray, name: str) -> np.ndarray:
        a = self.linear(x, name + ".c_fc")
        gelu = 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
        return self.linear(gelu, name + ".c_proj")

    def logits(self, tokens: list[int]) -> np.ndarray:
        x = np.array([self.w["transformer.wte.weight"][t] for t in tokens])
        x = x + self.w["transformer.wpe.weight"][: len(tokens)]
        for i in range(self.config.n_layer):
            block = f"transformer.h.{i}"
            x = x + self.attention(self.layer_norm(x, block + ".ln_1"), block + ".attn")
            x = x + self.mlp(self.layer_norm(x, block + ".ln_2"), block + ".mlp")
        return self.layer_norm(x, "transformer.ln_f") @ self.w["lm_head.weight"].T


def test_logits_and_loss_equal_the_formulas() -> None:
    model = shaken(tiny())
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 30], [0, 7, 7, 7, 2, 11, 12, 13, 14]])
    targets = tokens.roll(-1, dims=1)
    targets[:, -1] = IGNORE
    logits, loss = model(tokens, targets)
    reference = np.stack([Reference(model).logits(row) for row in tokens.tolist()])
    assert np.abs(logits.detach().numpy() - reference).max() < 1e-5

    shifted = reference - reference.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    nll = [-log_p[b, t, targets[b, t]] for b in range(2) for t in range(8)]
    assert loss is not None
    assert loss.item() == pytest.approx(np.mean(nll), abs=1e-5)
    assert model.loss(tokens, targets).item() == pytest.approx(np.mean(nll), abs=1e-5)
    assert model.loss(tokens, targets, divisor=1.0).item() == pytest.approx(np.sum(nll), abs=1e-4)


@pytest.mark.parametrize("model_type", PRESETS)
@pytest.mark.parametrize("toggles", TOGGLES, ids=lambda t: "+".join(t) or "plain")
def test_parameter_count(model_type: str, toggles: dict[str, bool]) -> None:
    config = GPTConfig(model_type=model_type, **toggles).resolved(50257, 1024)
    model = GPT(config, seed=None)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config)


def test_minGPT_parameter_names() -> None:  # noqa: N802
    names = set(GPT(tiny(n_layer=1), seed=None).state_dict())
    layers = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    block = {f"transformer.h.0.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    ends = {"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"}
    assert names == block | ends | {"lm_head.weight"}
    assert "transformer.wpe.weight" not in GPT(tiny(rope=True), seed=None).state_dict()


def test_seed_decides_the_weights() -> None:
    first, again, other = (GPT(tiny(), seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    same_shape = first["transformer.h.0.attn.c_attn.weight"], first["transformer.h.1.attn.c_attn.weight"]
    assert not torch.equal(*same_shape)


def test_weights_of_another_model_are_refused() -> None:
    model = GPT(tiny())
    with pytest.raises(RuntimeError, match="lm_head"):
        GPT.from_state(tiny(vocab_size=32), model.state_dict())


def test_unresolved_config_is_refused() -> None:
    with pytest.raises(ValueError, match="not resolved"):
        GPT(GPTConfig())


def test_too_long_input_is_refused() -> None:
    with pytest.raises(ValueError, match="10 tokens exceed the model's block_size 9, and learned positions end there"):
        GPT(tiny())(torch.zeros(1, 10, dtype=torch.long))


class TestGenerate:
    def test_greedy_takes_the_likeliest(self) -> None:
        model = shaken(tiny())
        idx = torch.tensor([[1, 2], [3, 4]])
        out = model.generate(idx, 5)
        for t in range(2, 7):
            assert torch.equal(out[:, t], model(out[:, :t])[0][:, -1].argmax(-1))

    def test_context_is_cropped_to_the_block(self) -> None:
        model = shaken(tiny())
        out = model.generate(torch.arange(8)[None], 12)
        assert out.shape == (1, 20)
        assert out[0, -1] == model(out[:, -10:-1])[0][0, -1].argmax()

    def test_top_k_draws_only_from_the_k_likeliest(self) -> None:
        model = shaken(tiny())
        start = torch.tensor([[5]]).expand(400, 1)
        allowed = set(model(start[:1])[0][0, -1].topk(3).indices.tolist())
        generator = torch.Generator().manual_seed(0)
        drawn = model.generate(start, 1, do_sample=True, top_k=3, generator=generator)[:, 1].tolist()
        assert set(drawn) == allowed

    def test_frequencies_follow_softmax_at_temperature(self) -> None:
        model = shaken(tiny())
        start = torch.tensor([[5]]).expand(20000, 1)
        p = (model(start[:1])[0][0, -1] / 0.5).softmax(-1)
        generator = torch.Generator().manual_seed(0)
        drawn = model.generate(start, 1, temperature=0.5, do_sample=True, generator=generator)[:, 1]
        frequency = torch.bincount(drawn, minlength=31) / 20000
        assert (frequency - p).abs().max() < 5 * math.sqrt(0.25 / 20000)

    def test_leaves_training_mode_and_default_generator_alone(self) -> None:
        model = GPT(tiny(), seed=1).train()
        before = torch.get_rng_state()
        first = model.generate(torch.tensor([[1]]), 6, do_sample=True, generator=torch.Generator().manual_seed(4))
        again = model.generate(torch.tensor([[1]]), 6, do_sample=True, generator=torch.Generator().manual_seed(4))
        assert torch.equal(first, again)
        assert model.training and torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"top_k": 0}])
    def test_bad_values_are_refused(self, bad: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="must be positive"):
            GPT(tiny()).generate(torch.tensor([[1]]), 1, **bad)


def test_dropout_is_on_in_training_only() -> None:
    model = shaken(tiny())
    x = torch.arange(9)[None]
    assert torch.equal(model(x)[0], model(x)[0])
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])
    dropouts = [m for m in model.modules() if isinstance(m, Dropout)]
    assert len(dropouts) == 1 + 2 * model.config.n_layer

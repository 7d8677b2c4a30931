"""Every optimizer against torch's own or its paper's formula, and what all of them must do alike."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablatrix.models.config import GPTConfig
from ablatrix.models.gpt import GPT
from ablatrix.trainer.config import TrainerConfig
from ablatrix.trainer.optimizers import AdamW, Optimizer, decaying, make
from ablatrix.trainer.optimizers.adafactor import Adafactor
from ablatrix.trainer.optimizers.muon import NEWTON_SCHULZ, Muon, newton_schulz
from ablatrix.trainer.optimizers.sgd import SGD

NAMES = ("adamw", "sgd", "muon", "adafactor")


def small() -> GPT:
    sizes = {"model_type": None, "n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 40, "block_size": 8}
    no_dropout = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT(GPTConfig.model_validate({**sizes, **no_dropout}), seed=1)


def made(model: nn.Module, name: str, **settings: Any) -> Optimizer:
    return make(model, TrainerConfig.model_validate({"optimizer": name, **settings}))


def draw_gradients(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """torch's parameter groups by minGPT's rule."""
    split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for _, parameter, decays in decaying(model):
        split[decays].append(parameter)
    return [{"params": split[True], "weight_decay": weight_decay}, {"params": split[False], "weight_decay": 0.0}]


def run_both(
    mine: Optimizer,
    ours: nn.Module,
    references: list[torch.optim.Optimizer],
    theirs: nn.Module,
    atol: float = 1e-6,
) -> None:
    """Ten steps of each, with a rate that changes, and gradients clipped by torch's function on their side."""
    for i in range(10):
        learning_rate = 1e-2 / (i + 1)
        draw_gradients(ours, i)
        draw_gradients(theirs, i)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), mine.grad_norm_clip or math.inf)
        for reference in references:
            for group in reference.param_groups:
                group["lr"] = learning_rate
            reference.step()
        mine.set_learning_rate(learning_rate)
        torch.testing.assert_close(mine.step(), expected)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=atol, msg=name)


# ---- against torch's


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_adamw_equals_torch(clip: float) -> None:
    ours, theirs = small(), small()
    reference = torch.optim.AdamW(groups(theirs, 0.3), lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    run_both(AdamW(decaying(ours), (0.9, 0.95), 0.3, clip), ours, [reference], theirs)


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_equals_torch(momentum: float, nesterov: bool, clip: float) -> None:
    ours, theirs = small(), small()
    reference = torch.optim.SGD(groups(theirs, 0.3), lr=1.0, momentum=momentum, nesterov=nesterov)
    mine = SGD(decaying(ours), momentum, nesterov, 0.3, clip)
    run_both(mine, ours, [reference], theirs)


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize(("momentum", "nesterov", "steps"), [(0.95, True, 5), (0.8, False, 3)])
def test_muon_equals_torch(momentum: float, nesterov: bool, steps: int, clip: float) -> None:
    ours, theirs = small(), small()
    blocks = {p for p in theirs.transformer.h.parameters() if p.ndim == 2}
    muon = torch.optim.Muon(
        blocks, lr=1.0, weight_decay=0.3, momentum=momentum, nesterov=nesterov, ns_steps=steps,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    rest = [{**group, "params": [p for p in group["params"] if p not in blocks]} for group in groups(theirs, 0.3)]
    adamw = torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    mine = Muon(
        ours, (0.9, 0.95), momentum=momentum, nesterov=nesterov, ns_steps=steps, weight_decay=0.3, grad_norm_clip=clip
    )
    assert {mine.named[name].shape for name in mine.hidden} == {(48, 16), (16, 16), (64, 16), (16, 64)}
    # we divide and torch multiplies to clip: what is rounded to bfloat16 afterwards may fall on the other side
    run_both(mine, ours, [muon, adamw], theirs, atol=1e-4 if clip else 1e-6)


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_adafactor_equals_torch(clip: float) -> None:
    """As long as the rate is under 1 / sqrt(t), which bounds torch's."""
    ours, theirs = small(), small()
    reference = torch.optim.Adafactor(groups(theirs, 0.3), lr=1.0, eps=(1e-30, 1e-3))
    run_both(Adafactor(decaying(ours), -0.8, 1.0, 0.3, clip), ours, [reference], theirs)


# ---- against the papers


def test_newton_schulz_maps_the_singular_values() -> None:
    a, b, c = NEWTON_SCHULZ
    for shape in ((12, 30), (30, 12), (16, 16)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = a * s + b * s**3 + c * s**5
        got = newton_schulz(matrix[None], 5)[0].double()
        assert float((got - u @ s.diag() @ vt).norm() / s.norm()) < 0.02  # bfloat16 has 8 bits


def test_muons_updates_are_as_large_as_adamws() -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    optimizer = made(model, "muon", weight_decay=0.0)
    draw_gradients(model, 0)
    optimizer.set_learning_rate(1.0)
    optimizer.step()
    assert isinstance(optimizer, Muon)
    for name in optimizer.hidden:
        change = model.state_dict()[name] - before[name]
        # singular values of about 1: the mean square is rank / (rows * columns) = 1 / max(rows, columns)
        assert float(change.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2), name


class TwoShapes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 7)  # a matrix and a vector
        self.stack = nn.Parameter(torch.randn(3, 4, 6))


def paper_adafactor(w: Tensor, grads: list[Tensor], rates: list[float], decay: float, d: float) -> Tensor:
    """Shazeer & Stern 2018, algorithms 4 and 5 in their own notation, in float64."""
    n, m = w.shape if w.ndim == 2 else (w.numel(), 1)
    matrix = w.ndim == 2
    w = w.double().reshape(n, m)
    r, c, v = w.new_zeros(n, 1), w.new_zeros(1, m), torch.zeros_like(w)
    for t, (grad, rho) in enumerate(zip(grads, rates, strict=True), start=1):
        g = grad.double().reshape(n, m)
        b = 1 - t**decay
        if matrix:
            r = b * r + (1 - b) * (g**2 + 1e-30) @ w.new_ones(m, 1)
            c = b * c + (1 - b) * w.new_ones(1, n) @ (g**2 + 1e-30)
            v = r @ c / (w.new_ones(1, n) @ r)
        else:
            v = b * v + (1 - b) * (g**2 + 1e-30)
        u = g / v.sqrt()
        u = u / max(1.0, float(u.square().mean().sqrt()) / d)
        w = w - max(1e-3, float(w.square().mean().sqrt())) * rho * u
    return w


@pytest.mark.parametrize(("decay", "d"), [(-0.8, 1.0), (-0.5, 0.6)])
def test_adafactor_equals_the_paper(decay: float, d: float) -> None:
    torch.manual_seed(0)
    model, rates = TwoShapes(), [0.01 * (i + 1) for i in range(6)]
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    history: dict[str, list[Tensor]] = {name: [] for name in start}
    optimizer = Adafactor(decaying(model), decay, d, 0.0)
    for i, rate in enumerate(rates):
        draw_gradients(model, i, scale=10.0 ** (-2 * i))
        for name, p in model.named_parameters():
            assert p.grad is not None
            history[name].append(p.grad.clone())
        optimizer.set_learning_rate(rate)
        optimizer.step()
    for name in ("linear.weight", "linear.bias"):
        expected = paper_adafactor(start[name], history[name], rates, decay, d)
        got = model.get_parameter(name).detach().double().reshape(expected.shape)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(model.stack, start["stack"]) and model.stack.isfinite().all()


def test_adafactor_survives_rows_without_gradient() -> None:
    """Tokens that no batch has held yet."""
    model = nn.Linear(6, 9)
    before = model.weight.detach().clone()
    optimizer = Adafactor(decaying(model), -0.8, 1.0, 0.0)
    optimizer.set_learning_rate(0.1)
    for i in range(5):
        draw_gradients(model, i, scale=1e3)
        assert model.weight.grad is not None and model.bias.grad is not None
        model.weight.grad[4:] = 0
        model.weight.grad[:, 3:] = 0
        model.bias.grad.zero_()
        optimizer.step()
    assert model.weight.isfinite().all() and model.bias.isfinite().all()
    assert torch.equal(model.weight[4:], before[4:]) and not torch.equal(model.weight[:4, :3], before[:4, :3])


def test_adafactor_keeps_little() -> None:
    optimizer = Adafactor(decaying(nn.Linear(500, 300)), -0.8, 1.0, 0.0)
    state = optimizer.state_dict()
    assert sum(t.numel() for part in ("rows", "columns", "whole") for t in state[part].values()) == 500 + 300 + 300


# ---- what all do alike


@pytest.mark.parametrize("name", NAMES)
def test_decay_moves_matrices_of_linear_maps_only(name: str) -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    optimizer = made(model, name, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.set_learning_rate(0.1)
    optimizer.step()
    linear = {f"{prefix}.weight" for prefix, module in model.named_modules() if isinstance(module, nn.Linear)}
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[key] * (0.95 if key in linear else 1.0), msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_clipped_gradients_count_as_the_longest_allowed(name: str) -> None:
    """Two steps: the first alone would not tell for those that normalize."""
    results = []
    for scale in (1.0, 1000.0):
        model = small()
        optimizer = made(model, name, grad_norm_clip=0.1)
        optimizer.set_learning_rate(1e-2)
        norms = []
        for i in range(2):
            draw_gradients(model, i, scale=scale**i)
            norms.append(float(optimizer.step()))
        assert norms[1] > 0.1 * scale
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_that_lies_on_the_device_does_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a recorded step reads it from a tensor."""
    results = []
    for on_device in (False, True):
        model = small()
        optimizer = made(model, name)
        parts = [optimizer, optimizer.rest] if isinstance(optimizer, Muon) else [optimizer]
        for part in parts if on_device else []:
            monkeypatch.setattr(part, "device_rate", lambda part=part: part.rate.fill_(part.learning_rate))
        for i in range(3):
            draw_gradients(model, i)
            optimizer.set_learning_rate(1e-2 * (i + 1))
            optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip(name: str) -> None:
    first, second = small(), small()
    a, b = made(first, name), made(second, name)
    for i in range(3):
        draw_gradients(first, i)
        a.set_learning_rate(1e-2)
        a.step()
        a.zero_grad()
        assert all(p.grad is None for p in first.parameters())
    file = io.BytesIO()
    torch.save(a.state_dict(), file)
    file.seek(0)
    second.load_state_dict(first.state_dict())
    b.load_state_dict(torch.load(file, weights_only=True))
    for model, optimizer in ((first, a), (second, b)):
        draw_gradients(model, 9)
        optimizer.set_learning_rate(1e-2)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_gradient_stay(name: str) -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    optimizer = made(model, name)
    draw_gradients(model, 0)
    for parameter in model.transformer.h[0].parameters():
        parameter.grad = None
    optimizer.set_learning_rate(1e-2)
    optimizer.step()
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) is key.startswith("transformer.h.0."), key


def test_a_shared_parameter_comes_once_and_does_not_decay() -> None:
    model = nn.ModuleDict({"wte": nn.Embedding(7, 4), "lm_head": nn.Linear(4, 7, bias=False)})
    model["lm_head"].weight = model["wte"].weight
    assert [(name, decays) for name, _, decays in decaying(model)] == [("wte.weight", False)]

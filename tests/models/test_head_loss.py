"""The head's loss and gradients, made chunk by chunk, against the plain formulation in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ablatrix.models import compiled_head, cpu_kernels, native
from ablatrix.models import head_loss as head_loss_module
from ablatrix.models.head_loss import IGNORE, head_loss, token_losses


@pytest.fixture(autouse=True, params=["torch", "compiled"])
def _small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that a test has several chunks and tiles, and ragged ends."""
    torch.manual_seed(0)
    monkeypatch.setattr(compiled_head, "MIN_WORDS", 0)
    monkeypatch.setattr(native, "_folder", None)
    if request.param == "compiled":
        native.use(request.getfixturevalue("kernels"))
        assert compiled_head.find(torch.zeros(257, 48), torch.float32, needs_grad=True)
    monkeypatch.setattr(cpu_kernels, "ROWS", 16)
    monkeypatch.setattr(cpu_kernels, "TILE", 16 * 64)
    monkeypatch.setattr(head_loss_module, "DEVICE_CHUNK", 9 * 257)


def inputs(n: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    x = (torch.randn(n, 16) * scale).requires_grad_()
    weight = torch.randn(257, 16).requires_grad_()
    targets = torch.randint(0, 257, (n,))
    return x, weight, targets


def plain(x: Tensor, weight: Tensor, targets: Tensor, divisor: float | None) -> tuple[Tensor, ...]:
    logits = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    loss = F.cross_entropy(logits[0] @ logits[1].T, targets, ignore_index=IGNORE, reduction="sum")
    loss = loss / (divisor or (targets != IGNORE).sum())
    return loss.detach(), *torch.autograd.grad(loss, logits)


def check(x: Tensor, weight: Tensor, targets: Tensor, divisor: float | None = None, tolerance: float = 2e-6) -> None:
    loss = head_loss(x, weight, targets, divisor)
    gradients = torch.autograd.grad(loss, (x, weight))
    for ours, theirs in zip((loss.detach(), *gradients), plain(x, weight, targets, divisor), strict=True):
        assert float((ours - theirs).abs().max()) <= tolerance * max(1e-3, float(theirs.abs().max()))


@pytest.mark.parametrize("n", [1, 15, 16, 17, 50])
@pytest.mark.parametrize("divisor", [None, 1.0, 37.0])
def test_loss_and_gradients(n: int, divisor: float | None) -> None:
    check(*inputs(n), divisor)


def test_positions_that_are_not_scored() -> None:
    x, weight, targets = inputs(40)
    targets[::3] = IGNORE
    check(x, weight, targets)
    (dx,) = torch.autograd.grad(head_loss(x, weight, targets), x)
    assert not dx[::3].any()


@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_logits_whose_exponentials_overflow(scale: float) -> None:
    x, weight, targets = inputs(40, scale)
    assert float((x @ weight.T).detach().abs().max()) > 88
    check(x, weight, targets, tolerance=1e-5)


@pytest.mark.parametrize("width", [16, 48, 64, 80, 112, 400])
def test_other_widths(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "ROWS", 128)
    x, weight = torch.randn(200, width).requires_grad_(), (torch.randn(257, width) / 4).requires_grad_()
    check(x, weight, torch.randint(0, 257, (200,)), tolerance=5e-6)


@pytest.mark.parametrize("width", [16, 48, 64, 112, 400])
@pytest.mark.parametrize("offset", [0.0, -160 / cpu_kernels.LOG2_E])  # a bfloat16 in the kernels' base 2
@pytest.mark.parametrize("words", [257, 545])
def test_bfloat16_on_amx(width: int, offset: float, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, with the last rows and words of a block missing, also where all exponentials underflow."""
    monkeypatch.setattr(cpu_kernels, "ROWS", 128)
    x, weight = torch.randn(200, width), torch.randn(words, width) / 4
    x[:, 0], weight[:, 0] = offset, 1.0
    if compiled_head.find(weight, torch.bfloat16, needs_grad=True) is not compiled_head.AmxHeadLoss:
        pytest.skip("needs AMX")
    x.requires_grad_(), weight.requires_grad_()
    targets = torch.randint(0, words, (200,))
    targets[::7] = IGNORE
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head_loss(x, weight, targets)
    gradients = torch.autograd.grad(loss, (x, weight))
    for ours, theirs in zip((loss.detach(), *gradients), plain(x, weight, targets, None), strict=True):
        assert float((ours - theirs).norm()) <= 0.02 * float(theirs.norm())


def test_a_library_that_others_can_write_is_not_loaded(kernels: Path) -> None:
    native.use(kernels)
    loaded = native.load(compiled_head.FLOAT32)
    assert loaded
    library = Path(loaded._name)
    library.chmod(0o722)
    native._load.cache_clear()
    assert not native.load(compiled_head.FLOAT32)
    library.chmod(0o700)
    native._load.cache_clear()
    assert native.load(compiled_head.FLOAT32)


def test_without_a_compiler_torch_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    native.use(tmp_path)
    assert not compiled_head.find(torch.zeros(257, 48), torch.float32, needs_grad=True)
    check(*inputs(50))


@pytest.mark.parametrize("offset", [-200.0, 200.0])
def test_logits_that_are_all_far_from_zero(offset: float) -> None:
    x, weight, targets = inputs(40)
    with torch.no_grad():
        x[:, 0], weight[:, 0] = offset, 1.0
    check(x, weight, targets, tolerance=1e-4)


def test_gradient_is_scaled_by_what_follows() -> None:
    x, weight, targets = inputs(20)
    plain_gradients = torch.autograd.grad(head_loss(x, weight, targets), (x, weight))
    scaled = torch.autograd.grad(3 * head_loss(x, weight, targets), (x, weight))
    for a, b in zip(scaled, plain_gradients, strict=True):
        torch.testing.assert_close(a, 3 * b)


def test_not_a_number_stays_visible() -> None:
    x, weight, targets = inputs(20)
    with torch.no_grad():
        x[3, 3] = float("nan")
    assert head_loss(x, weight, targets).isnan()


def test_without_gradients() -> None:
    x, weight, targets = inputs(50)
    with torch.no_grad():
        loss = head_loss(x, weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, head_loss(x, weight, targets).detach())


def test_bfloat16_products() -> None:
    x, weight, targets = inputs(50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head_loss(x, weight, targets)
    assert loss.dtype == torch.float32
    gradients = torch.autograd.grad(loss, (x, weight))
    for ours, theirs in zip((loss.detach(), *gradients), plain(x, weight, targets, None), strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm()) <= 0.02 * float(theirs.norm())


def test_weight_gradient_is_handed_over_not_copied() -> None:
    x, weight, targets = inputs(20)
    loss = head_loss(x, weight, targets)
    made = loss.grad_fn.dw.data_ptr()  # type: ignore[union-attr]
    loss.backward()
    assert weight.grad is not None and weight.grad.data_ptr() == made


def test_second_backward_is_refused() -> None:
    x, weight, targets = inputs(20)
    loss = head_loss(x, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated only once"):
        loss.backward()


def test_the_way_of_gpus_is_the_same() -> None:
    """It is plain torch, so the CPU can do it as well."""
    x, weight, targets = inputs(50)
    targets[4] = IGNORE
    scale = (targets != IGNORE).float() / 49
    rows = x.detach(), weight.detach(), targets.clamp(min=0), scale
    whole = head_loss_module.ChunkedHeadLoss(*rows, torch.float32, needs_grad=True)
    loss = whole.run()
    for ours, theirs in zip((loss, whole.dx, whole.dw), plain(x, weight, targets, None), strict=True):
        assert float((ours - theirs).abs().max()) <= 2e-6 * max(1e-3, float(theirs.abs().max()))


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_loss_of_each_token(device: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, targets = inputs(50, scale)
    targets[[4, 49]] = IGNORE
    if device == "gpu":
        monkeypatch.setattr(head_loss_module, "_cpu_chunks", head_loss_module.ChunkedHeadLoss)
    found = token_losses(x, weight, targets)
    expected = F.cross_entropy(x.double() @ weight.double().T, targets, ignore_index=IGNORE, reduction="none")
    assert not found.requires_grad and found[4] == found[49] == 0
    torch.testing.assert_close(found.double(), expected.detach(), rtol=2e-6, atol=2e-6 * scale)

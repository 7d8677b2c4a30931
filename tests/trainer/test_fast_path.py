"""What makes a step fast changes nothing about what is computed."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablatrix.models.gpt import GPT
from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.device import autocast, product_type, tune_products
from ablatrix.trainer.loop import Array, Trainer
from ablatrix.trainer.optimizers import decaying
from ablatrix.trainer.rundir.errors import ConfigError
from ablatrix.trainer.schedules import learning_rate
from tests.support.callbacks import at

ROOT = Path(__file__).resolve().parents[2]
VOCAB, BLOCK, BATCH = 600, 80, 3
NO_DROPOUT = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
NEW_PARTS: dict[str, Any] = {
    "positions": "alibi",
    "alibi_trainable": True,
    "feedforward": "geglu",
    "norm": "rmsnorm",
    "n_kv_head": 1,
}
NEW_PARTS |= {"qk_norm": True, "tie_embeddings": True, "bias": False}


@pytest.fixture(autouse=True)
def _restore_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def config(model: dict[str, Any] | None = None, **trainer: Any) -> RunConfig:
    settings = {"max_iters": 200, "batch_size": BATCH, "learning_rate": 5e-4, "log_interval": 1, "eval_interval": 0}
    return RunConfig.model_validate(
        {
            "data": {"file_path": "x", "block_size": BLOCK},
            "model": {"model_type": "gpt-nano", **NO_DROPOUT, **(model or {})},
            "trainer": {**settings, "warmup_steps": 2, "use_cosine": True, "ckpt_interval": 0, **trainer},
        }
    ).resolved(VOCAB)


def batch(i: int) -> tuple[Array, Array]:
    """A noisy walk through the vocabulary: something can be learnt, and never all of it."""
    draw = np.random.Generator(np.random.Philox(key=[7, i]))
    steps = draw.choice([1, 2, 30], size=(BATCH, BLOCK + 1), p=[0.6, 0.3, 0.1])
    tokens = (draw.integers(0, VOCAB, (BATCH, 1)) + steps.cumsum(1)) % VOCAB
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def losses(run: RunConfig, device: str = "cpu") -> list[float]:
    def source(start: int, stop: int) -> Iterator[tuple[Array, Array]]:
        return (batch(i) for i in range(start, stop))

    empty = np.zeros((0, BLOCK), dtype=np.int64)
    trainer, found = Trainer(run, source, (empty, empty), device), []
    trainer.add_callback(at("on_row", lambda t: found.append(t.row["loss"])))
    trainer.run()
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    return found


def plain_loss(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    """GPT-2's formulas with torch's own layers and the whole logits."""
    w, n_head = dict(model.named_parameters()), model.config.n_head
    assert n_head

    def norm(h: Tensor, name: str) -> Tensor:
        return F.layer_norm(h, h.shape[-1:], w[name + ".weight"], w[name + ".bias"])

    def linear(h: Tensor, name: str) -> Tensor:
        return F.linear(h, w[name + ".weight"], w[name + ".bias"])

    h = w["transformer.wte.weight"][x] + w["transformer.wpe.weight"][: x.shape[1]]
    for i in range(len(model.transformer.h)):
        block = f"transformer.h.{i}"
        qkv = linear(norm(h, block + ".ln_1"), block + ".attn.c_attn").chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (n_head, -1)).transpose(1, 2) for t in qkv)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(later, -math.inf).softmax(-1)
        h = h + linear((weights @ v).transpose(1, 2).flatten(2), block + ".attn.c_proj")
        hidden = F.gelu(linear(norm(h, block + ".ln_2"), block + ".mlp.c_fc"), approximate="tanh")
        h = h + linear(hidden, block + ".mlp.c_proj")
    logits = norm(h, "transformer.ln_f") @ w["lm_head.weight"].T
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def plain_losses(run: RunConfig) -> list[float]:
    model, settings = GPT(run.model, seed=run.system.seed), run.trainer
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for _, parameter, decays in decaying(model):
        groups[decays].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": 0.1}, {"params": groups[False], "weight_decay": 0.0}],
        betas=settings.betas,
    )
    found = []
    for i in range(settings.max_iters):
        x, y = (torch.from_numpy(a) for a in batch(i))
        loss = plain_loss(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_norm_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(i + 1, settings)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("tuned", [False, True], ids=["torch's products", "tuned products"])
@pytest.mark.slow
def test_same_curve_as_the_plain_formulation(tuned: bool) -> None:
    if tuned:
        tune_products(torch.device("cpu"))
    ours, theirs = losses(config()), plain_losses(config())
    assert ours[-1] < ours[0] - 0.5
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4


@pytest.mark.parametrize(
    ("parts", "optimizer", "within"),
    # muon rounds to bfloat16, where the order of a sum shows
    [(2, "adamw", 1e-5), (3, "adamw", 1e-5), (3, "sgd", 1e-5), (3, "muon", 1e-3), (3, "adafactor", 1e-5)],
)
@pytest.mark.slow
def test_parts_of_a_batch_add_up(parts: int, optimizer: str, within: float) -> None:
    whole = losses(config(max_iters=20, optimizer=optimizer))
    split = losses(config(max_iters=20, optimizer=optimizer, grad_accum=parts))
    assert split == pytest.approx(whole, abs=within)


@pytest.mark.slow
def test_bfloat16_stays_close() -> None:
    wide, half = losses(config(max_iters=60)), losses(config(max_iters=60, dtype="bfloat16"))
    assert half != wide
    assert half == pytest.approx(wide, abs=0.05)


def test_automatic_type_of_products() -> None:
    cpu = torch.device("cpu")
    assert product_type("auto", cpu) == "float32" and not autocast("auto", cpu)._enabled
    assert product_type("bfloat16", cpu) == "bfloat16" and autocast("bfloat16", cpu)._enabled
    if torch.cuda.is_available():
        assert product_type("auto", torch.device("cuda")) == "bfloat16"


@pytest.mark.parametrize("model", [{}, NEW_PARTS, {"norm_placement": "post"}], ids=["plain", "other parts", "post"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recomputed_blocks_change_no_bit(model: dict[str, Any], dtype: str) -> None:
    model = {**model, **dict.fromkeys(NO_DROPOUT, 0.1)}
    kept = losses(config(model, max_iters=8, dtype=dtype))
    assert losses(config(model, max_iters=8, dtype=dtype, activation_checkpointing=True)) == kept


@pytest.mark.parametrize("positions", ["learned", "alibi"])
def test_recomputed_blocks_keep_only_their_inputs(positions: str) -> None:
    """Counts what the forward pass allocates and does not free, by autograd or by a kernel of its own."""

    def held(recompute: bool) -> int:
        model = GPT(config({"positions": positions, **dict.fromkeys(NO_DROPOUT, 0.1)}).model, seed=1).train()
        if recompute:
            model.recompute_blocks()
        tokens = torch.zeros(4, BLOCK, dtype=torch.int64)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
            features = model.transformer(tokens)
        assert features.requires_grad
        return sum(event.self_cpu_memory_usage for event in recorded.key_averages())

    kept, inputs = held(recompute=False), 4 * BLOCK * 48 * 4  # bytes of (B, T, C)
    assert inputs < held(recompute=True) < 16 * inputs < kept / 4


def test_recomputing_and_recording_steps_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="activation_checkpointing: incompatible"):
        config(activation_checkpointing=True, compile=True)


def test_compile_is_for_gpus() -> None:
    assert losses(config(max_iters=5, compile=True)) == losses(config(max_iters=5))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
def test_compiled_parts_compute_the_same() -> None:
    """What a GPU gets, compiled here for the CPU."""
    from ablatrix.models import head_loss

    model = GPT(config({"swiglu": True, "rmsnorm": True, "rope": True}).model, seed=1)
    x, y = (torch.from_numpy(a) for a in batch(0))
    expected = model.loss(x, y)
    expected.backward()
    gradients = [p.grad for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    model.compile_parts()
    loss = model.loss(x, y)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
    logits, scale = torch.randn(9, VOCAB), torch.rand(9, 1)
    targets = torch.randint(0, VOCAB, (9, 1))
    for ours, plain in zip(
        model.pointwise(logits, targets, scale), head_loss.softmax_gradient(logits, targets, scale), strict=True
    ):
        torch.testing.assert_close(ours, plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("parts", [{}, NEW_PARTS], ids=["plain", "other parts"])
def test_recorded_steps_equal_launched_ones(dropout: float, dtype: str, parts: dict[str, Any]) -> None:
    model = {**dict.fromkeys(NO_DROPOUT, dropout), **parts}
    launched = losses(config(model, max_iters=30, dtype=dtype), "cuda")
    recorded = losses(config(model, max_iters=30, dtype=dtype, compile=True), "cuda")
    # compiled dropout draws other masks
    assert recorded == pytest.approx(launched, abs=0.02 if dropout == 0 else 0.3)
    assert recorded == losses(config(model, max_iters=30, dtype=dtype, compile=True), "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adafactor"])
def test_recorded_steps_of_every_optimizer(optimizer: str) -> None:
    rate = {"sgd": 0.05, "muon": 5e-4, "adafactor": 1e-2}[optimizer]
    settings = {"max_iters": 30, "optimizer": optimizer, "learning_rate": rate}
    recorded = losses(config(compile=True, **settings), "cuda")
    assert recorded == pytest.approx(losses(config(**settings), "cuda"), abs=0.02)


HEAP = """
import sys
from ablatrix.trainer.device import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
import torch

def heap():
    lines = [line for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")]
    return [int(word, 16) for word in lines[0].split()[0].split("-")]

block = torch.empty(64 << 20, dtype=torch.uint8)
inside = heap()[0] <= block.data_ptr() < heap()[1]
end = heap()[1]
del block
print(inside, heap()[1] == end)
"""


@pytest.mark.skipif("glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="only glibc has this setting")  # type: ignore[operator]
@pytest.mark.slow
def test_memory_is_kept() -> None:
    """Large tensors come from the heap, and the heap does not shrink when they are freed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("GLIBC_TUNABLES", None)
    said = {
        how: subprocess.run(
            [sys.executable, "-c", HEAP, how], env=env, capture_output=True, check=True, text=True
        ).stdout
        for how in ("kept", "given back")
    }
    assert said["kept"].split() == ["True", "True"]
    assert said["given back"].split()[0] == "False"


@pytest.mark.slow
def test_starting_imports_no_compiler() -> None:
    """torch._dynamo and sympy take as long to import as all the rest of a short run."""
    code = (
        "import sys; import numpy as np; from tests.trainer.test_fast_path import config, losses\n"
        "for name in 'adamw', 'sgd', 'muon', 'adafactor': losses(config(max_iters=2, optimizer=name))\n"
        "print({'torch._dynamo', 'sympy', 'pandas', 'transformers'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

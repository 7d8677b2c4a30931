"""The parts of `benchmarks.gpu`: each yields rows of results, as JSON-serializable dictionaries."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ablatrix.models.config import GPTConfig
from ablatrix.models.gpt import measure as measure_model
from benchmarks.contest import Contestant, Worker, alternate, ratio
from benchmarks.gpu_common import BUDGETS, VOCAB, Row, error, has_cuda, start, timed
from benchmarks.gpu_sharing import sharing, sharing_mps, stacked
from benchmarks.step import MODES, peers
from benchmarks.worker import our_trainer

CASES = {
    "nano1": ("gpt-nano", 1, 256),
    "nano": ("gpt-nano", 32, 256),
    "mini": ("gpt-mini", 32, 256),
    "gpt2": ("gpt2", 8, 1024),
    "gpt2-32": ("gpt2", 32, 1024),  # compiled programs only: the others would run out of memory
}  # batch, block
# Dense bfloat16 FLOP/s from NVIDIA's data sheets, by a part of the card's name; MFU is relative to these
DATA_SHEET = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12}
TOLERANCE = 2e-2  # largest difference in nats between bfloat16 on the device and float32 on the CPU


# ---- the machine


def machine(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the card, the versions, and the FLOP/s of a large matrix product, an upper bound for any step."""
    import torch

    name = torch.cuda.get_device_name() if has_cuda() else "CPU"
    size = 256 if args.quick else 8192
    with Worker(Contestant("peak", {"kind": "peak", "size": size, "dtype": "bfloat16"}), args.threads) as worker:
        (seconds,) = alternate([worker], *((2, 0.01) if args.quick else (5, 0.5)))
    yield {
        "name": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "flops_per_s": 2 * size**3 / min(seconds),
    }


def data_sheet() -> float | None:
    """Return this card's bfloat16 FLOP/s according to its data sheet, None if unknown."""
    import torch

    name = torch.cuda.get_device_name() if has_cuda() else ""
    return next((flops for card, flops in DATA_SHEET.items() if card in name), None)


# ---- steps


def our_contestants(spec: dict[str, Any], case: str) -> list[Contestant]:
    ours = {**spec, "kind": "ours"}
    settings: dict[str, tuple[dict[str, Any], str]] = {"eager": ({}, "")}
    if has_cuda():
        settings |= {"graphs": ({}, "graphs"), "trainer.compile": (MODES["compiled"], "")}
    if has_cuda() and case == "gpt2":
        settings["compiled"] = ({}, "compiled")
    if case == "gpt2":
        settings["recomputed"] = (MODES["recomputed"], "")
    return [
        Contestant(f"Ablatrix, {name}", {**ours, "only": only, "trainer": {"dtype": spec["dtype"], **more}})
        for name, (more, only) in settings.items()
    ]


def peer_contestants(spec: dict[str, Any], paths: list[Path]) -> list[Contestant]:
    """Return the peers as contestants: nanoGPT with the same dtype, minGPT in float32, its only dtype."""
    found = []
    for path in paths:
        single = "float32" if (path / "mingpt").exists() else spec["dtype"]
        for peer in peers(path, {**spec, "dtype": single}):
            if not peer.environment and (has_cuda() or not peer.spec.get("compile")):
                found.append(Contestant(f"{peer.name}, {single}", peer.spec))
    return found


def steps(case: str, args: argparse.Namespace) -> Iterator[Row]:
    """Measure bfloat16 training steps side by side: tokens per second, fractions of the peak, peak memory."""
    model, batch, block = ("gpt-nano", 2, 16) if args.quick else CASES[case]
    vocab = 200 if args.quick else VOCAB
    spec = {
        "model": model,
        "batch": batch,
        "block": block,
        "vocab": vocab,
        "dropout": args.dropout,
        "dtype": "bfloat16",
    }
    _, flops = measure_model(GPTConfig(model_type=model).resolved(vocab, block))
    field = our_contestants(spec, case) + peer_contestants(spec, args.peer)
    if case == "gpt2-32" and has_cuda():
        field = [contestant for contestant in field if "compile" in contestant.name]
    with contextlib.ExitStack() as stack:
        measured = []
        for contestant, worker in start(field, args.threads, BUDGETS[f"steps-{case}"] * 0.8):
            if isinstance(worker, Worker):
                measured.append((contestant, stack.enter_context(worker)))
            else:
                yield error(contestant.name, worker)
        workers = [worker for _, worker in measured]
        times = alternate(workers, *((2, 0.01) if args.quick else (5, 0.2)))
        for (contestant, worker), seconds in zip(measured, times, strict=True):
            speed, known = batch * block / statistics.median(seconds), data_sheet()
            yield {
                "name": contestant.name,
                "tokens_per_s": speed,
                "of_peak": speed * flops / args.peak if args.peak else None,
                "mfu": speed * flops / known if known else None,
                "x_first": ratio(seconds, times[0]),
                "peak_mib": worker.ask("1")["memory"] / 2**20,
            }


# ---- kernels


def head_losses() -> dict[str, Callable[[Any, Any, Any], Any]]:
    """Return ways to compute the mean NLL from features (N, C), weight (V, C) and targets (N,), under autocast."""
    import torch
    from torch.nn import functional as F

    from ablatrix.models.head_loss import head_loss, softmax_gradient

    def plain(x: Any, w: Any, y: Any) -> Any:
        return F.cross_entropy(F.linear(x, w).float(), y)

    found: dict[str, Callable[[Any, Any, Any], Any]] = {"Ablatrix": head_loss, "torch, plain": plain}
    if has_cuda():
        found["Ablatrix, compiled"] = partial(head_loss, pointwise=torch.compile(softmax_gradient))
        found["torch, compiled"] = torch.compile(plain)
    chunked, options = getattr(F, "linear_cross_entropy", None), getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if chunked is not None and options is not None:
        found["torch, chunked"] = lambda x, w, y: chunked(x.bfloat16(), w.bfloat16(), y, options=options())
    with contextlib.suppress(ImportError):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        found["Liger"] = lambda x, w, y: liger(w.bfloat16(), x.bfloat16(), y)
    return found


def head(args: argparse.Namespace) -> Iterator[Row]:
    """Measure the output head with cross-entropy, forward and backward, in bfloat16."""
    import torch

    rows, vocab, widths = (64, 200, [48]) if args.quick else (8192, VOCAB, [48, 192, 768])
    device = "cuda" if has_cuda() else "cpu"
    for width in widths:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(rows, width, generator=generator).to(device).requires_grad_()
        w = (torch.randn(vocab, width, generator=generator) * 0.02).to(device).requires_grad_()
        y = torch.randint(vocab, (rows,), generator=generator).to(device)
        for name, loss in head_losses().items():

            def both(loss: Any = loss, x: Any = x, w: Any = w, y: Any = y) -> Any:
                x.grad = w.grad = None
                with torch.autocast(device, dtype=torch.bfloat16):
                    found = loss(x, w, y)
                found.backward()
                return found.detach()

            try:
                value = float(both())
                seconds, mib = timed(both, 2 if args.quick else 20)
                yield {"name": name, "width": width, "ms": 1e3 * seconds, "peak_mib": mib, "loss": value}
            except Exception as reason:  # noqa: BLE001  (from another library: go on with the next one)
                yield error(name, reason)


def newton_schulz(args: argparse.Namespace) -> Iterator[Row]:
    """Measure Muon's Newton-Schulz steps for all matrices of a model, one by one and batched by shape."""
    import torch

    from ablatrix.trainer.optimizers.muon import newton_schulz as orthogonalize

    device = "cuda" if has_cuda() else "cpu"
    for model, layers, width in [("gpt-nano", 3, 48)] if args.quick else [("gpt-mini", 6, 192), ("gpt2", 12, 768)]:
        shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
        stacks = [torch.randn(layers, *shape, device=device) for shape in shapes]
        apart = partial(lambda stacks: [orthogonalize(m[None], 5)[0] for stack in stacks for m in stack], stacks)
        together = partial(lambda stacks: [orthogonalize(stack, 5) for stack in stacks], stacks)
        pairs = zip(apart(), itertools.chain.from_iterable(together()), strict=True)
        difference = max(float((a - b).abs().max()) for a, b in pairs)
        for name, call in {"one by one": apart, "batched": together}.items():
            seconds, mib = timed(call, 2 if args.quick else 20)
            yield {
                "name": f"{model}, {name}",
                "ms": 1e3 * seconds,
                "peak_mib": mib,
                "largest_difference": difference,
            }


# ---- correctness


def losses(trainer: Any, stop: int) -> list[float]:
    """Train up to step `stop` and return the loss of each step."""
    found, before = [], float(trainer._sums[0])
    for x, y in trainer.source(trainer.iter, stop):
        trainer._step(x, y)
        total = float(trainer._sums[0])
        found.append(total - before)
        before = total
    return found


def correctness(args: argparse.Namespace) -> Iterator[Row]:
    """Compare the loss curve with the CPU's in float32, and with that of a run resumed halfway from a checkpoint."""
    from ablatrix.trainer import checkpoint

    count = 10 if args.quick else 100
    sizes = {"model": "gpt-nano", "batch": 8, "block": 16 if args.quick else 64, "vocab": 512, "dropout": 0.0}
    rate = {"learning_rate": 3e-3}
    expected = losses(our_trainer({**sizes, "device": "cpu", "trainer": rate}), count)
    kinds: list[tuple[str, str, dict[str, Any]]] = [("float32", "", {}), ("bfloat16", "", {})]
    kinds += [("bfloat16", "recomputed", MODES["recomputed"])]
    kinds += [("bfloat16", "compiled", MODES["compiled"])] if has_cuda() else []
    for dtype, mode, more in kinds:
        spec = {**sizes, "trainer": {**rate, "dtype": dtype, **more}}
        trainer, resumed = our_trainer(spec), our_trainer(spec)
        curve = losses(trainer, count // 2)
        with tempfile.TemporaryDirectory() as folder:
            path = checkpoint.save(Path(folder), trainer.state())
            resumed.load_state(checkpoint.load(path, trainer.config.fingerprint_until))
        half = losses(trainer, count)
        again = losses(resumed, count)
        curve += half
        difference = max(abs(a - b) for a, b in zip(curve, expected, strict=True))
        yield {
            "name": f"{trainer.device.type}, {dtype} {mode}".strip(),
            "first_loss": curve[0],
            "last_loss": curve[-1],
            "largest_difference": difference,
            "within_tolerance": difference <= TOLERANCE,
            "resumed_difference": max(abs(a - b) for a, b in zip(half, again, strict=True)),
        }


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "machine": machine,
    "correctness": correctness,
    **{f"steps-{case}": partial(steps, case) for case in CASES},
    "head": head,
    "sharing": sharing,
    "newton-schulz": newton_schulz,
    "sharing-mps": sharing_mps,
    "stacked": stacked,
}

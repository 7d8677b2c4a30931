"""Several runs of gpt-nano on one device: side by side in separate processes, or stacked in one process."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ablatrix.models.config import GPTConfig
from benchmarks.contest import Contestant, Worker
from benchmarks.gpu_common import VOCAB, Row, error, has_cuda, start, timed


def sharing(
    args: argparse.Namespace, environment: dict[str, str] | None = None, counts: Sequence[int] = (1, 2, 4, 8)
) -> Iterator[Row]:
    """Measure runs of gpt-nano side by side on one device: total tokens per second."""
    batches, counts, steps = ([2], [1, 2], 2) if args.quick else ([1, 8], counts, 200)
    for batch in batches:
        alone = 0.0
        for runs in counts:
            speed = together(runs, batch, steps, args, environment or {})
            if isinstance(speed, Exception):
                yield error(f"batch {batch}, {runs} runs", speed)
                return
            alone = alone or speed
            yield {"name": f"batch {batch}, {runs} runs", "tokens_per_s": speed, "x_one": speed / alone}


def together(
    runs: int, batch: int, steps: int, args: argparse.Namespace, environment: dict[str, str]
) -> float | Exception:
    """Return the total tokens per second of `runs` concurrent runs, or the error if they did not start."""
    block, vocab = (16, 200) if args.quick else (256, VOCAB)
    sizes = {"model": "gpt-nano", "batch": batch, "block": block, "vocab": vocab, "dropout": args.dropout}
    spec = {**sizes, "kind": "ours", "trainer": {"dtype": "bfloat16"}, "only": "graphs" if has_cuda() else ""}
    field = [Contestant(f"run {i}", spec, environment) for i in range(runs)]
    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(runs) as pool:
        workers = []
        for _, worker in start(field, 1, 60):
            if not isinstance(worker, Worker):
                return worker
            workers.append(stack.enter_context(worker))
        list(pool.map(lambda worker: worker.steps(5), workers))
        since = time.perf_counter()
        list(pool.map(lambda worker: worker.steps(steps), workers))
        return runs * steps * batch * block / (time.perf_counter() - since)


def sharing_mps(args: argparse.Namespace) -> Iterator[Row]:
    """Measure `sharing` under NVIDIA's Multi-Process Service, if this user may start it."""
    with tempfile.TemporaryDirectory(prefix="mps") as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        try:
            # in the foreground, so that it ends with this part's process group
            daemon = subprocess.Popen(["nvidia-cuda-mps-control", "-f"], env={**os.environ, **environment})
        except OSError as reason:
            yield error("nvidia-cuda-mps-control", reason)
            return
        try:
            daemon.wait(timeout=2)
            yield {"name": "nvidia-cuda-mps-control", "error": f"ended with exit code {daemon.returncode}"}
        except subprocess.TimeoutExpired:
            yield from sharing(args, environment, (1, 8))
        finally:
            daemon.terminate()
            daemon.wait()


def stacked(args: argparse.Namespace) -> Iterator[Row]:
    """Measure seeds of gpt-nano stacked in one process by `torch.func`, which does not support the CPU kernels."""
    if not has_cuda():
        return
    batch, block, vocab = (2, 16, 200) if args.quick else (8, 256, VOCAB)
    alone = 0.0
    for seeds in (1, 2) if args.quick else (1, 2, 4, 8):
        seconds, mib = timed(stacked_step(seeds, batch, block, vocab), 2 if args.quick else 50)
        speed = seeds * batch * block / seconds
        alone = alone or speed
        yield {"name": f"{seeds} seeds", "tokens_per_s": speed, "x_one": speed / alone, "peak_mib": mib}


def stacked_step(seeds: int, batch: int, block: int, vocab: int) -> Callable[[], Any]:
    """Return a step (forward, backward, AdamW) of several models, each with its own batch; a CUDA graph on a GPU."""
    import torch
    from torch.func import functional_call, grad, vmap
    from torch.nn import functional as F

    from ablatrix.models.gpt import GPT

    device = "cuda" if has_cuda() else "cpu"
    config = GPTConfig(model_type="gpt-nano", embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0).resolved(vocab, block)
    models = [GPT(config, seed).to(device) for seed in range(seeds)]
    weights, _ = torch.func.stack_module_state(models)
    weights = {name: weight.detach() for name, weight in weights.items()}
    parameters: list[Any] = list(weights.values())
    means, squares = ([torch.zeros_like(weight) for weight in weights.values()] for _ in "mv")
    steps = torch.zeros((), device=device)
    x, y = torch.randint(vocab, (2, seeds, batch, block), device=device)

    def loss(weights: dict[str, Any], x: Any, y: Any) -> Any:
        logits, _ = functional_call(models[0], weights, (x,))
        return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())

    def step() -> None:
        steps.add_(1)
        with torch.autocast(device, dtype=torch.bfloat16):
            gradients = vmap(grad(loss))(weights, x, y)
        torch._fused_adamw_(
            parameters, list(gradients.values()), means, squares, [], [steps] * len(weights), lr=1e-3,
            beta1=0.9, beta2=0.95, weight_decay=0.1, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip

    return graphed(step) if device == "cuda" else step


def graphed(step: Callable[[], None]) -> Callable[[], None]:
    """Record `step` as a CUDA graph and return a function that replays it."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay

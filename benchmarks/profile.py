"""Profile a training step part by part: `python -m benchmarks.profile [CASE ...]`. Prints one Markdown table per case.

Seconds come from torch's profiler, which slows a small model's step by a few percent but preserves the proportions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from ablatrix.models.config import GPTConfig, ResolvedGPTConfig
from ablatrix.models.gpt import measure as measure_model
from benchmarks.contest import table
from benchmarks.step import CASES, matmul_peak
from benchmarks.step import parse as parse_step
from benchmarks.worker import our_trainer

HEAD, ATTENTION, OPTIMIZER, BATCHES, REST = "head and loss", "attention", "optimizer", "batches", "everything else"
KERNELS = {
    "_HeadLoss": HEAD,
    "_HeadLossBackward": HEAD,
    "_BlockAttention": ATTENTION,
    "_BlockAttentionBackward": ATTENTION,
    "_CompiledAttention": ATTENTION,
    "_CompiledAttentionBackward": ATTENTION,
}


def flops(config: ResolvedGPTConfig, tokens: int) -> dict[str, float]:
    """Return the FLOPs of a step by part; "the rest" includes the linear layers of the blocks."""
    head = 6 * config.vocab_size * config.n_embd
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    rest = measure_model(config)[1] - head - attention
    return {HEAD: head * tokens, ATTENTION: attention * tokens, OPTIMIZER: 0, BATCHES: 0, REST: rest * tokens}


def seconds(spec: dict[str, Any], steps: int) -> dict[str, float]:
    """Return the seconds of one step by part."""
    from torch.autograd.profiler import record_function
    from torch.profiler import ProfilerActivity, profile

    trainer = our_trainer(spec)
    update, source = trainer.optimizer.step, trainer.source(0, 10**9)

    def recorded_update() -> Any:
        with record_function(OPTIMIZER):
            return update()

    def batches() -> Iterator[Any]:
        while True:
            with record_function(BATCHES):
                batch = next(source)
            yield batch

    trainer.optimizer.step = recorded_update
    stream = batches()
    for _ in range(3):
        trainer._step(*next(stream))
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            with record_function("step"):
                trainer._step(*next(stream))
    found = dict.fromkeys((HEAD, ATTENTION, OPTIMIZER, BATCHES), 0.0)
    whole = 0.0
    for event in recorded.key_averages():
        part = KERNELS.get(event.key, event.key)
        if part in found:
            found[part] += event.cpu_time_total / 1e6 / steps
        elif event.key == "step":
            whole = event.cpu_time_total / 1e6 / steps
    return {**found, REST: whole - sum(found.values())}


def measure(case: str, args: argparse.Namespace, peak: float) -> str:
    """Return the table for one case. peak: FLOP/s of the machine's matrix products."""
    model, batch = CASES[case]
    spec = {"model": model, "batch": batch, "block": args.block, "vocab": args.vocab, "dropout": args.dropout}
    times = seconds({**spec, "trainer": {"dtype": args.dtype}}, args.rounds)
    work = flops(GPTConfig(model_type=model).resolved(args.vocab, args.block), batch * args.block)
    times["the step"], work["the step"] = sum(times.values()), sum(work.values())
    rows = []
    for part, spent in times.items():
        rate = f"{100 * work[part] / spent / peak:.0f}%" if work[part] else ""
        share = f"{100 * spent / times['the step']:.0f}%"
        rows.append([part, f"{1e3 * spent:,.1f}", share, f"{work[part] / 1e9:,.1f}" if work[part] else "", rate])
    return table([f"{model}, batch {batch}, {args.dtype}", "ms", "share", "GFLOP", "of peak"], rows)


def main(argv: list[str] | None = None) -> None:
    """Parse the options, which are those of `benchmarks.step`, measure, and print the tables."""
    args = parse_step(argv, prog="python -m benchmarks.profile", description=__doc__)
    peak = matmul_peak(args)
    print(f"{args.threads} threads; matrix products of {args.dtype} reach {peak / 1e9:,.0f} GFLOP/s here", flush=True)
    for case in args.cases:
        print("\n" + measure(case, args, peak), flush=True)


if __name__ == "__main__":
    main()

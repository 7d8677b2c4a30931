"""Speed of training steps: `python -m benchmarks.step [--peer PATH ...]`. Tokens per second, ratios against peers."""

from __future__ import annotations

import argparse
import contextlib
import statistics
from pathlib import Path
from typing import Any

from ablatrix.models.config import GPTConfig
from ablatrix.models.gpt import measure as measure_model
from ablatrix.trainer.rundir.cpus import allotted_cores
from benchmarks.contest import KEEP_MEMORY, Contestant, Worker, alternate, ratio, table

MODES: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compile": True},
    "recomputed": {"activation_checkpointing": True},
}
CASES = {"nano1": ("gpt-nano", 1), "nano8": ("gpt-nano", 8), "mini8": ("gpt-mini", 8), "gpt2": ("gpt2", 4)}


def peers(path: Path, spec: dict[str, Any]) -> list[Contestant]:
    """Return the contestants from a checkout. Raises SystemExit if it is neither minGPT nor nanoGPT."""
    here = {**spec, "path": str(path.resolve())}
    if (path / "mingpt" / "trainer.py").exists():
        return [Contestant("minGPT", {**here, "kind": "mingpt"})] if spec["dtype"] == "float32" else []
    if (path / "model.py").exists() and (path / "train.py").exists():
        nano = {**here, "kind": "nanogpt"}
        compiled = {**nano, "compile": True}
        return [
            Contestant("nanoGPT", nano),
            Contestant("nanoGPT, compiled", compiled),
            Contestant("nanoGPT, compiled, memory kept", compiled, KEEP_MEMORY),
        ]
    raise SystemExit(f"{path}: neither a checkout of minGPT nor of nanoGPT")


def contestants(spec: dict[str, Any], args: argparse.Namespace) -> list[Contestant]:
    ours = {**spec, "kind": "ours"}
    found = [
        Contestant(f"Ablatrix, {name}", {**ours, "trainer": {"dtype": spec["dtype"], **MODES[name]}})
        for name in args.mode
    ]
    settings = {"dtype": spec["dtype"], **MODES[args.mode[0]]}
    for name in args.toggle:
        found.append(Contestant(f"Ablatrix, {name}", {**ours, "toggles": {name: True}, "trainer": settings}))
    for path in args.peer:
        found += [peer for peer in peers(path, spec) if not args.only or peer.name in args.only]
    return found


def matmul_peak(args: argparse.Namespace) -> float:
    """Return the FLOP/s of a large square matrix product in `args.dtype`, an upper bound for any step."""
    with Worker(
        Contestant("peak", {"kind": "peak", "size": args.peak_size, "dtype": args.dtype}), args.threads
    ) as worker:
        (seconds,) = alternate([worker], args.rounds, args.seconds)
    return float(2 * args.peak_size**3 / min(seconds))


def measure(case: str, args: argparse.Namespace, peak: float) -> str:
    """Return the table for one case. peak: FLOP/s of the machine's matrix products."""
    model, batch = CASES[case]
    sizes = {"model": model, "batch": batch, "block": args.block, "vocab": args.vocab}
    spec = {**sizes, "dropout": args.dropout, "dtype": args.dtype}
    field = contestants(spec, args)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(c, args.threads)) for c in field]
        times = alternate(workers, args.rounds, args.seconds)
        memory = [worker.ask("1")["memory"] for worker in workers]
    rows = []
    for contestant, seconds, resident in zip(field, times, memory, strict=True):
        speed = batch * args.block / statistics.median(seconds)
        ratios = [f"{ratio(ours, seconds):.2f}" for ours in times[: len(args.mode)]]
        shape = GPTConfig(model_type=model, **contestant.spec.get("toggles", {}))
        _, flops = measure_model(shape.resolved(args.vocab, args.block))
        share = f"{100 * speed * flops / peak:.0f}%"
        rows.append([contestant.name, f"{speed:,.0f}", share, *ratios, f"{resident / 2**20:,.0f}"])
    faster = [f"{mode} is x faster" for mode in args.mode]
    header = [f"{model}, batch {batch}, {args.dtype}", "tokens/s", "of peak", *faster, "MiB"]
    return table(header, rows)


def parse(
    argv: list[str] | None, prog: str = "python -m benchmarks.step", description: str | None = __doc__
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--peer", type=Path, action="append", default=[], help="checkout of minGPT or nanoGPT")
    parser.add_argument("--only", action="append", default=[], help="measure only these peers, by name")
    parser.add_argument("--mode", action="append", choices=list(MODES), help="of this project; eager")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--toggle", action="append", default=[], help="also this switch of the model, e.g. rope")
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each program in each round")
    parser.add_argument("--peak-size", type=int, default=2048, help="of the matrices whose product gives the peak")
    parser.add_argument("--threads", type=int, default=allotted_cores())
    args = parser.parse_args(argv)
    args.mode = args.mode or ["eager"]
    unknown = set(args.cases) - set(CASES)
    if unknown:
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    peak = matmul_peak(args)
    print(
        f"{args.threads} threads, block {args.block}, vocabulary {args.vocab}, dropout {args.dropout}; "
        f"matrix products of {args.dtype} reach {peak / 1e9:,.0f} GFLOP/s here",
        flush=True,
    )
    for case in args.cases:
        print("\n" + measure(case, args, peak), flush=True)


if __name__ == "__main__":
    main()

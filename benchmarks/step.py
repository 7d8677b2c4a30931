"""Training steps: `python -m benchmarks.step [--peer PATH ...]`. Tokens per second, and ratios against the peers."""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
from pathlib import Path
from typing import Any

from benchmarks.contest import KEEP_MEMORY, Contestant, Worker, alternate, ratio, table
from trainer.device import allotted_cores

CASES = {"nano1": ("gpt-nano", 1), "nano8": ("gpt-nano", 8), "mini8": ("gpt-mini", 8), "gpt2": ("gpt2", 4)}


def peers(path: Path, spec: dict[str, Any]) -> list[Contestant]:
    """What a checkout is measured as. Raises SystemExit where it is neither minGPT nor nanoGPT."""
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
    ours = {**spec, "kind": "ours", "toggles": dict.fromkeys(args.toggle, True)}
    names = {"eager": False, "compiled": True}
    found = [
        Contestant(
            f"Ablatrix, {name}", {**ours, "trainer": {"dtype": spec["dtype"], "compile": names[name]}}
        )
        for name in args.mode
    ]  # fmt: skip
    for path in args.peer:
        found += [peer for peer in peers(path, spec) if not args.only or peer.name in args.only]
    return found


def measure(case: str, args: argparse.Namespace) -> str:
    """The Markdown table of one case."""
    model, batch = CASES[case]
    sizes = {"model": model, "batch": batch, "block": args.block, "vocab": args.vocab}
    spec = {**sizes, "dropout": args.dropout, "dtype": args.dtype}
    field = contestants(spec, args)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(c, args.threads)) for c in field]
        times = alternate(workers, args.rounds, args.seconds, patience=args.patience)
        memory = [worker.ask("1")["memory"] for worker in workers]
    rows = []
    for contestant, seconds, peak in zip(field, times, memory, strict=True):
        speed = batch * args.block / statistics.median(seconds)
        ratios = [f"{ratio(ours, seconds):.2f}" for ours in times[: len(args.mode)]]
        rows.append([contestant.name, f"{speed:,.0f}", *ratios, f"{peak / 2**20:,.0f}"])
    header = [f"{model}, batch {batch}, {args.dtype}", "tokens/s", *(f"{m} is x faster" for m in args.mode), "peak MiB"]
    return table(header, rows)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--peer", type=Path, action="append", default=[], help="checkout of minGPT or nanoGPT")
    parser.add_argument("--only", action="append", default=[], help="measure only these peers, by name")
    parser.add_argument("--mode", action="append", choices=["eager", "compiled"], help="of this project; eager")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--toggle", action="append", default=[], help="switch of this project's model, e.g. rope")
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each program in each round")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds that a turn waits for an idle machine")
    parser.add_argument("--cpu-time", action="store_true", help="processor time: on a busy machine, with --threads 1")
    parser.add_argument("--threads", type=int, default=allotted_cores())
    args = parser.parse_args(argv)
    if args.cpu_time:
        os.environ["BENCHMARK_CLOCK"] = "cpu"
    args.mode = args.mode or ["eager"]
    unknown = set(args.cases) - set(CASES)
    if unknown:
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    print(f"{args.threads} threads, block {args.block}, vocabulary {args.vocab}, dropout {args.dropout}", flush=True)
    for case in args.cases:
        print("\n" + measure(case, args), flush=True)


if __name__ == "__main__":
    main()

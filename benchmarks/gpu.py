"""All GPU measurements in one command: `python -m benchmarks.gpu [PART ...] [--peer PATH ...]`.

Each part (benchmarks/gpu_parts.py) runs in its own process with a time budget, so that a part that fails, hangs or
leaves the device in a bad state does not affect the others. Results are printed as JSON lines as they come in, and as
tables at the end. `--device cpu --quick` runs the same code on a CPU at a small scale.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir.cpus import allotted_cores
from benchmarks.contest import ROOT, table
from benchmarks.gpu_common import BUDGETS, Row


def collect(part: str, command: Sequence[str], limit: float) -> list[Row]:
    """Run a part's command for at most `limit` seconds; return the JSON lines that it prints, echoing each immediately.

    If the part fails or times out, the last row has an `error`; its earlier rows are kept.
    """
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append({"part": part, **row})
        print(json.dumps(rows[-1]), flush=True)

    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True)
    try:
        for line in _lines(process, start + limit):
            if line.startswith("{"):
                add(json.loads(line))
        code = process.wait(timeout=max(1.0, start + limit - time.monotonic()))
        if code:
            add({"error": f"ended with exit code {code}"})
    except (TimeoutError, subprocess.TimeoutExpired):
        add({"error": f"stopped after {limit:.0f} s"})
    finally:
        with contextlib.suppress(ProcessLookupError):  # also ends the programs that it measured
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return rows


def _lines(process: subprocess.Popen[bytes], end: float) -> Any:
    """Yield the lines of a process's output. Raises TimeoutError at `end`, a time on the monotonic clock."""
    assert process.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, end - time.monotonic())):
                raise TimeoutError
            read = os.read(process.stdout.fileno(), 1 << 16)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)


def tables(rows: Sequence[Row]) -> str:
    """Return one Markdown table per part, with the keys of its rows as columns."""
    blocks = []
    for part in dict.fromkeys(row["part"] for row in rows):
        of_part = [{k: v for k, v in row.items() if k != "part"} for row in rows if row["part"] == part]
        columns = list(dict.fromkeys(key for row in of_part for key in row))
        cells = [[_cell(row.get(column)) for column in columns] for row in of_part]
        blocks.append(f"## {part}\n\n{table(columns, cells)}")
    return "\n\n".join(blocks)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "/")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(BUDGETS)}; all by default")
    parser.add_argument("--peer", type=Path, action="append", default=[], help="checkout of minGPT or nanoGPT")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does the code run")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=allotted_cores(), help="of each measured program")
    parser.add_argument("--output", type=Path, help="append the JSON lines to this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # run one part in this process
    parser.add_argument("--peak", type=float, default=0.0, help=argparse.SUPPRESS)  # FLOP/s measured by `machine`
    args = parser.parse_args(argv)
    unknown = set(args.parts) - set(BUDGETS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(BUDGETS)}")
    args.parts = args.parts or list(BUDGETS)
    return args


def run_here(args: argparse.Namespace) -> None:
    """Run one part in this process and print its rows."""
    from benchmarks.gpu_parts import PARTS

    for row in PARTS[args.parts[0]](args):
        print(json.dumps(row), flush=True)


def command(part: str, args: argparse.Namespace, peak: float) -> list[str]:
    """Return the command line that runs one part."""
    options = ["--device", args.device, "--threads", str(args.threads), "--dropout", str(args.dropout)]
    for path in args.peer:
        options += ["--peer", str(path.resolve())]
    options += ["--quick"] if args.quick else []
    return [sys.executable, "-m", "benchmarks.gpu", part, "--here", "--peak", str(peak), *options]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if args.here:
        run_here(args)
        return
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")  # for each of the programs that start at the same time
    end = time.monotonic() + 60 * args.minutes
    rows: list[Row] = []
    for part in args.parts:
        left = end - time.monotonic()
        if left < 1:
            rows.append({"part": part, "error": "no time was left"})
            continue
        peak = next((row["flops_per_s"] for row in rows if "flops_per_s" in row), 0.0)
        found = collect(part, command(part, args, peak), min(BUDGETS[part], left))
        rows += found
        if args.output:
            with args.output.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
    print("\n" + tables(rows), flush=True)


if __name__ == "__main__":
    main()

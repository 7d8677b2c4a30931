"""Start-up time, from exec to the end of the first gpt-nano step: `python -m benchmarks.startup [--peer PATH ...]`.

The token cache is warm, as in every job of a study except the first. The baseline is `python -c "import torch"`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablatrix.trainer.data import embedded_sample, warm_cache
from ablatrix.trainer.rundir.cpus import allotted_cores
from ablatrix.trainer.rundir.run_files import EXIT_STOPPED
from benchmarks.contest import Contestant, Worker, environment, ratio, table
from benchmarks.step import peers

VOCAB = 50257


def prepare(folder: Path, batch: int) -> list[str]:
    """Return the command of a run in `folder`, which fills the token cache the first time it runs."""
    warm_cache.warm_tokenizer("sample", folder / "cache", source=None)
    embedded_sample.write_corpus(folder / "sample.jsonl")
    flags = {
        "data.file_path": folder / "sample.jsonl",
        "data.tokenizer": "sample",
        "data.block_size": 256,
        "model.model_type": "gpt-nano",
        "model.vocab_size": VOCAB,
        "trainer.batch_size": batch,
        "trainer.max_iters": 1000,
        "trainer.device": "cpu",
        "trainer.resume": "none",
        "system.work_dir": folder / "run",
        "system.cache_dir": folder / "cache",
    }
    return [sys.executable, "-m", "ablatrix.trainer", *(f"--{key}={value}" for key, value in flags.items())]


def first_step(command: list[str], threads: int) -> float:
    """Return the seconds from exec to the row of the first step, then stop the run."""
    begin = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(threads)
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if " iter 1/" in line:
                elapsed = time.perf_counter() - begin
                process.terminate()
                process.communicate()
                if process.returncode == EXIT_STOPPED:
                    return elapsed
        raise SystemExit(f"the run failed: {process.stderr.read()}")


def import_torch(threads: int) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True, env=environment(threads))
    return time.perf_counter() - begin


def peer_step(contestant: Contestant, threads: int) -> float:
    begin = time.perf_counter()
    with Worker(contestant, threads) as worker:
        # a worker reports that it is ready after its first step
        elapsed = time.perf_counter() - begin
        worker.process.kill()
    return elapsed


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--peer", type=Path, action="append", default=[], help="checkout of minGPT or nanoGPT")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=allotted_cores())
    args = parser.parse_args(argv)
    sizes: dict[str, Any] = {"model": "gpt-nano", "batch": args.batch, "block": 256, "vocab": VOCAB}
    spec = {**sizes, "dropout": 0.1, "dtype": "float32"}
    with tempfile.TemporaryDirectory() as name:
        command = prepare(Path(name), args.batch)
        jobs: dict[str, Callable[[], float]] = {
            "python -c 'import torch'": lambda: import_torch(args.threads),
            "Ablatrix": lambda: first_step(command, args.threads),
        }
        for path in args.peer:
            for peer in peers(path, spec):
                jobs[peer.name] = lambda peer=peer: peer_step(peer, args.threads)  # type: ignore[misc]
        times: dict[str, list[float]] = {key: [] for key in jobs}
        for number in range(args.rounds + 1):
            for key in jobs if number % 2 == 0 else reversed(list(jobs)):
                seconds = jobs[key]()
                if number:  # the first round only fills the caches: tokens, files, compiled kernels
                    times[key].append(seconds)
    base = times["python -c 'import torch'"]
    rows = [
        [key, f"{statistics.median(values):.2f}", f"{ratio(base, values):.2f}"] for key, values in times.items()
    ]  # fmt: skip
    print(f"{args.threads} threads, gpt-nano, batch {args.batch}, vocabulary {VOCAB}\n")
    print(table(["to the end of the first step", "seconds", "x import torch"], rows))


if __name__ == "__main__":
    main()

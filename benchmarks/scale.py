"""Speed of the orchestrator on large studies: plan of 3,072 runs; submit, status and a second submit of 1,024.

`python -m benchmarks.scale` prints a Markdown table. The scheduler is a stub that answers immediately, so that only the
orchestrator is measured. The checks of `submit` (tokenizer, corpus, what Slurm accepts) take the same time for 7 runs
and for 1,024; the row of 7 runs shows it.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.trainer.data import embedded_sample, warm_cache
from tests.support.fake_slurm import FakeSlurm

FEATURES = {
    "a": "model.swiglu: true",
    "b": "model.rmsnorm: true",
    "c": "model.rope: true",
    "d": "trainer.warmup_steps: 50",
    "e": "trainer.use_cosine: true",
    "f": "trainer.learning_rate: 1e-3",
    "g": "trainer.weight_decay: 0.2",
    "h": "trainer.batch_size: 4",
    "i": "model.n_layer: 2",
    "j": "trainer.grad_norm_clip: 0.5",
}


def write_experiment(folder: Path, name: str, features: int, seeds: int, design: str) -> Path:
    """Write an experiment of at most 2**features cells on the sample corpus to `folder`; return its path."""
    lines = "\n".join(f"  {key}: {{{value}}}" for key, value in list(FEATURES.items())[:features])
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\n"
        f"base: {{data: {{file_path: {folder}/sample.jsonl, tokenizer: sample, block_size: 64}}, "
        f"model.model_type: gpt-nano, system.cache_dir: {folder}/cache}}\n"
        f"features:\n{lines}\ndesign: {design}\nseeds: {seeds}\n"
    )
    return path


def measure(folder: Path, environment: dict[str, str], *words: str) -> tuple[float, float]:
    """Return (wall, CPU) seconds of one command, including its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    command = [sys.executable, "-m", "ablatrix.orchestrator", *words]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--features", type=int, default=10, choices=range(4, 11), help="of the largest study, 2^n cells"
    )
    count = parser.parse_args(argv).features
    planned, submitted = 3 * 2**count, 8 * 2 ** (count - 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fake = FakeSlurm(folder / "slurm")
        environment = {**os.environ, "PYTHONPATH": str(code_root()), "PATH": f"{fake.bin}:{os.environ['PATH']}"}
        warm_cache.warm_tokenizer("sample", folder / "cache", source=None)
        embedded_sample.write_corpus(folder / "sample.jsonl")
        large = write_experiment(folder, "large", count, 3, "[factorial]")
        study = write_experiment(folder, "study", count - 3, 8, "[factorial]")
        small = write_experiment(folder, "small", 6, 1, "[baseline, one_at_a_time]")
        steps = {
            "--help": ("--help",),
            f"plan, {planned:,} runs": ("plan", str(large)),
            "submit, 7 runs (the checks)": ("submit", str(small), "--no-report"),
            f"submit, {submitted:,} runs": ("submit", str(study), "--no-report"),
            f"status, {submitted:,} runs": ("status", "study", "--json"),
            f"submit again, {submitted:,} runs": ("submit", str(study), "--no-report"),
        }
        print("| command | wall, s | CPU, s | sbatch | squeue |\n|---|---|---|---|---|")
        for label, words in steps.items():
            calls = fake.calls("sbatch"), fake.calls("squeue")
            wall, cpu = measure(folder, environment, *words)
            new = [fake.calls(name) - count for name, count in zip(("sbatch", "squeue"), calls, strict=True)]
            print(f"| {label} | {wall:.2f} | {cpu:.2f} | {new[0]} | {new[1]} |", flush=True)


if __name__ == "__main__":
    main()

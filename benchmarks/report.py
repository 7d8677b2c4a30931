"""Speed of reports: `python -m benchmarks.report` prints CPU seconds and memory for studies of 12, 500 and 5,000 runs.

Files are written to a temporary folder (about 0.5 GB for 500 runs; `--small` skips these studies). Imports are not
counted. "again" is a second report with nothing changed, "one run changed" a third one after adding a row to one file.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from ablatrix.orchestrator.report.build import build
from ablatrix.trainer.rundir.loss_csv import COLUMNS
from tests.support.studies import Plan, write_study

HEADER = ",".join(COLUMNS) + "\n"


def write(folder: Path, cells: int, seeds: int, rows: int) -> dict[str, tuple[str, str]]:
    """Write a study of cells x seeds runs whose loss.csv files all differ; return its states."""
    names = [f"feature_{i:03d}" for i in range(1, cells)]
    features = {name: {"trainer.warmup_steps": i + 1} for i, name in enumerate(names)}
    made = {"baseline": [], **{name: [name] for name in names}}
    plan = Plan(seeds=range(seeds), features=features, cells=made, rows=10, max_iters=1000 + cells)
    states = write_study(folder, plan)
    bodies = [body(np.random.default_rng(i), rows) for i in range(8)]
    for i, path in enumerate(sorted(folder.glob("*/loss.csv"))):
        path.write_text(f"{HEADER}1,{6 + i / 1000!r},0.004,,0.0005,1.0,512,0.004\n{bodies[i % len(bodies)]}")
    return states


def body(rng: np.random.Generator, rows: int) -> str:
    """Return rows as a trainer writes them, with every digit of every float."""
    lines = []
    for step, noise in zip(range(2, rows + 1), rng.normal(0, 0.1, rows).tolist(), strict=False):
        loss = 3 + 3 * step**-0.3 + noise
        held_out = repr(loss - noise) if step % (rows // 20) == 0 else ""
        lines.append(
            f"{step},{loss!r},{0.004 + noise / 1e4!r},{held_out},0.0005,{1 + noise!r},{step * 512},{step / 250!r}"
        )
    return "\n".join(lines) + "\n"


def measure(cells: int, seeds: int, rows: int) -> None:
    """Print the times of three reports of one study."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study"
        states = write(study, cells, seeds, rows)
        seconds = []
        for again in range(3):
            if again == 2:
                with next(study.glob("*/loss.csv")).open("a") as file:
                    file.write(f"{rows + 1},3.0,0.004,,0.0005,1.0,{512 * rows + 512},{(rows + 1) / 250}\n")
            start = time.process_time()
            build(study, states)
            seconds.append(time.process_time() - start)
        page = (study / "report" / "report.html").stat().st_size
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{cells * seeds:4d} runs of {rows} rows: {seconds[0]:5.2f} s, again {seconds[1]:.2f} s, one run changed "
        f"{seconds[2]:.2f} s; page {page / 1e6:.2f} MB, peak memory {memory:.0f} MB"
    )


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, import everything by reporting a tiny study, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="only the study of 12 runs")
    parser.add_argument(
        "--rows", type=int, default=5000, help="of each of 12 runs; those of 500 have twice, those of 5,000 always 100"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), write_study(Path(folder), Plan(seeds=(1,))))
    measure(4, 3, args.rows)
    if not args.small:
        measure(100, 5, 2 * args.rows)
        measure(1000, 5, 100)


if __name__ == "__main__":
    main()

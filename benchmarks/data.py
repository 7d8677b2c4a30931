"""Speed of reading, tokenizing and sampling: `python -m benchmarks.data [--megabytes 64]`. Markdown tables of ratios.

The corpus is the standard library's source code, cut into documents of log-normal length like those of web text;
`--file` selects a different corpus, `--tokenizer gpt2 --cache-dir DIR` a different tokenizer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data import cache_builder, embedded_sample, tokenizer, warm_cache
from ablatrix.trainer.data.batches import Batches
from ablatrix.trainer.data.corpus import scan_lines
from ablatrix.trainer.data.encoder import Encoder, exact_tokenizer
from ablatrix.trainer.data.formats import TextFile
from ablatrix.trainer.data.manifest import MANIFEST
from ablatrix.trainer.data.on_the_fly import GrowingStore
from ablatrix.trainer.data.text_source import Source
from ablatrix.trainer.data.token_cache import Cache
from ablatrix.trainer.data.token_store import CompleteStore
from ablatrix.trainer.rundir.cpus import allotted_cores
from benchmarks.contest import ROOT, ratio, table

MEDIAN_CHARACTERS, SPREAD = 2000, 1.5  # document length: half are shorter, the mean is three times as long
LONGEST = 2_000_000
BATCH = 8


def make_corpus(path: Path, size: int) -> None:
    """Write `size` bytes of documents, identical for the same Python version."""
    text = "\n".join(record["text"] for record in embedded_sample.documents())
    draw, written = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            length = min(int(draw.lognormvariate(math.log(MEDIAN_CHARACTERS), SPREAD)), LONGEST, len(text) - 1)
            start = draw.randrange(len(text) - length)
            written += file.write(
                json.dumps({"text": text[start : start + length], "meta": {"source": "stdlib"}}) + "\n"
            )


def rounds(jobs: Mapping[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Return the seconds that each job took in each round; the order is reversed every round."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(count):
        for name in list(jobs) if number % 2 == 0 else reversed(list(jobs)):
            begin = time.perf_counter()
            jobs[name]()
            times[name].append(time.perf_counter() - begin)
    return times


def compare(title: str, unit: str, amount: float, times: Mapping[str, list[float]], base: str) -> str:
    """Return a table of rates (`amount` per second) and ratios to `base`."""
    rows = [
        [name, f"{amount / statistics.median(seconds):,.1f}", f"{ratio(seconds, times[base]):.2f}"]
        for name, seconds in times.items()
    ]
    return table([title, unit, f"x {base}"], rows)


def scanning(path: Path, count: int) -> str:
    """Measure the single pass over a new file against just reading it and against a Python loop over lines."""

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(1 << 20)
            while file.readinto(buffer):
                pass

    def loop() -> None:
        with path.open("rb") as file:
            sum(1 for _ in file)

    def scan() -> None:
        scan_lines(Source([TextFile(path)]), lambda _: None, lambda _: None)

    times = rounds({"read only": read, "for line in file": loop, "scan for line starts": scan}, count)
    return compare("one pass", "MB/s", path.stat().st_size / 1e6, times, "read only")


def encoding(path: Path, info: tokenizer.TokenizerInfo, count: int, megabytes: float = 8.0) -> str:
    """Measure encoders that produce the same ids, on one core."""
    exact, ours = exact_tokenizer(info.folder / "tokenizer.json"), Encoder(info)
    reference = tokenizer.load(info.name, info.folder.parents[1])
    texts, size = [], 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
            if size > megabytes * 1e6:
                break
    jobs: dict[str, Callable[[], object]] = {
        "GPT2TokenizerFast, one call a document": lambda: [reference(t, add_special_tokens=False) for t in texts],
        "tokenizers, one call a document": lambda: [exact.encode(t, add_special_tokens=False).ids for t in texts],
        "tokenizers, encode_batch_fast": lambda: exact.encode_batch_fast(texts, add_special_tokens=False),
        "this project's encoder, one thread": lambda: [ours.encode(t) for t in texts],
    }
    return compare("text to ids", "MB/s", size / 1e6, rounds(jobs, count), "GPT2TokenizerFast, one call a document")


def building(config: DataConfig, cache_dir: Path, count: int) -> str:
    """Measure the time from a new file to a complete cache, with 1, 2, ... worker processes."""
    cache, cores = Cache.of(config, cache_dir), allotted_cores()
    numbers = sorted({1, min(2, cores), cores})

    def build(workers: int) -> None:
        shutil.rmtree(cache.folder, ignore_errors=True)
        cache_builder.build(config, cache_dir, workers)

    jobs = {f"{n} process{'es' * (n > 1)}": lambda n=n: build(n) for n in numbers}
    return compare("token cache", "MB/s", cache.size / 1e6, rounds(jobs, count), "1 process")


def batches(config: DataConfig, cache_dir: Path, count: int, number: int) -> str:
    """Measure batches read from the complete cache, tokenized when drawn, and with one tokenizer call per item."""
    cache = Cache.of(config, cache_dir)
    complete = CompleteStore(cache.folder, cache_builder.build(config, cache_dir, allotted_cores()))
    lines = cache.lines()
    cached = Batches(complete, config, BATCH, seed=0)
    reference = tokenizer.load(config.tokenizer, cache_dir)
    tokens, step = complete.tokens, iter(range(10**9))

    def nanogpt() -> None:
        draw = np.random.default_rng(next(step)).integers(len(tokens) - config.block_size - 1, size=BATCH)
        np.stack([tokens[k : k + config.block_size + 1].astype(np.int64) for k in draw])

    def item() -> None:
        draw, found = random.Random(next(step)), 0
        while found < BATCH:
            text = lines.text(draw.randrange(len(lines)))[0]
            found += text is not None and len(reference(text)["input_ids"]) > config.block_size

    growing = [Batches(_unbuilt(cache), config, BATCH, seed=k) for k in range(count)]
    jobs: dict[str, Callable[[], object]] = {
        "a tokenizer call an item": lambda: repeat(lambda _: item(), number),
        "tokenized when drawn": lambda: repeat(growing.pop(), number),  # an empty store in each round
        "complete token cache": lambda: repeat(cached, 100 * number),
        "random windows of one memmap (nanoGPT's way)": lambda: repeat(lambda _: nanogpt(), 100 * number),
    }
    times = rounds(jobs, count)
    for name in list(jobs)[2:]:
        times[name] = [seconds / 100 for seconds in times[name]]
    return compare(f"batches of {BATCH} x {config.block_size}", "a second", number, times, "a tokenizer call an item")


def repeat(job: Callable[[int], object], number: int) -> None:
    """Call `job` with 0, ..., number - 1."""
    for i in range(number):
        job(i)


def _unbuilt(cache: Cache) -> GrowingStore:
    """Return a store that uses neither shards nor the complete cache, and builds nothing."""
    store = GrowingStore(cache)
    store._looked = math.inf
    return store


FIRST = """
import json, sys, time
begin = time.perf_counter()
from pathlib import Path
from ablatrix.trainer.data import batches, heldout, on_the_fly, tokens
from ablatrix.trainer.config import DataConfig
tokens.WAIT_BYTES = 0
on_the_fly._Builders.look = lambda self: None  # the run alone, without its low-priority workers
peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
config, cache_dir = DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])
start, base = time.perf_counter(), peak()
store = tokens.open_tokens(config, cache_dir)
opened = time.perf_counter()
heldout.HeldOut.of(store, config).windows(config.block_size, 65536)
batches.Batches(store, config, 8, 0)(0)
print(json.dumps([start - begin, opened - start, time.perf_counter() - opened, peak() - base]))
"""


def first_batch(config: DataConfig, cache_dir: Path, count: int) -> str:
    """Measure the time to the first batch in a fresh process: with a new file, an indexed one, and a complete cache."""
    cache = Cache.of(config, cache_dir)
    rows = []
    for stage in ("new file", "indexed file", "complete cache"):
        found: list[list[float]] = []
        for _ in range(count):
            if stage != "complete cache":
                for name in ("meta.json", "index.json")[: 2 if stage == "new file" else 1]:
                    (cache.folder / name).unlink(missing_ok=True)
            else:
                cache_builder.build(config, cache_dir, allotted_cores())
            command = [sys.executable, "-c", FIRST, config.model_dump_json(), str(cache_dir)]
            output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, env=os.environ).stdout
            found.append(json.loads(output))
        middle = [statistics.median(column) for column in zip(*found, strict=True)]
        rows.append([stage, *(f"{seconds:.2f}" for seconds in middle[:3]), f"{middle[3] / 2**20:.0f}"])
    return table(
        ["first batch", "imports, s", "open, s", "held-out set and batch, s", "memory above imports, MiB"], rows
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--megabytes", type=float, default=64.0, help="size of the corpus that is made")
    parser.add_argument("--file", type=Path, help="a JSONL file to use in its place")
    parser.add_argument("--tokenizer", default="sample")
    parser.add_argument("--cache-dir", type=Path, help="offline cache that holds the tokenizer; default: one is made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20, help="per round, of those that are tokenized when drawn")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmarks and print the tables."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        cache_dir = Path(folder) / "cache"
        if args.cache_dir is None:
            warm_cache.warm_tokenizer(args.tokenizer, cache_dir, source=None)
        else:
            cache_dir.mkdir()
            for name in (MANIFEST, "tokenizers"):
                (cache_dir / name).symlink_to((args.cache_dir / name).resolve())
        path = args.file or Path(folder) / "corpus.jsonl"
        if args.file is None:
            make_corpus(path, int(args.megabytes * 1e6))
        config = DataConfig(file_path=str(path), tokenizer=args.tokenizer)
        info: Any = tokenizer.find(args.tokenizer, cache_dir)
        print(f"{path.stat().st_size / 1e6:,.0f} MB, tokenizer {args.tokenizer}, {allotted_cores()} cores\n")
        parts: tuple[Callable[[], str], ...] = (
            lambda: scanning(path, args.rounds),
            lambda: encoding(path, info, args.rounds),
            lambda: building(config, cache_dir, args.rounds),
            lambda: batches(config, cache_dir, args.rounds, args.batches),
            lambda: first_batch(config, cache_dir, args.rounds),
        )
        for part in parts:
            print(part(), end="\n\n", flush=True)


if __name__ == "__main__":
    main()

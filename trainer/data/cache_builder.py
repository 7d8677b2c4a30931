"""Build token caches: worker processes share the shards of a corpus, on one or many hosts.

`python -m ablatrix.trainer.data.cache_builder DATA_CONFIG_JSON CACHE_DIR LIMIT NICE` is one worker. It exits when the
cache is complete, when its standard input is closed (its parent died), or with an error message and an exit code.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data import shards, token_cache
from ablatrix.trainer.data.encoder import Encoder
from ablatrix.trainer.data.shard_claims import Claims
from ablatrix.trainer.data.token_cache import Cache
from ablatrix.trainer.rundir.cpus import allotted_cores
from ablatrix.trainer.rundir.errors import AblatrixError, RunError, UserError
from ablatrix.trainer.rundir.files import make_folder, remove
from ablatrix.trainer.rundir.program import module_environment

if TYPE_CHECKING:
    from ablatrix.trainer.data.corpus import Lines
    from ablatrix.trainer.data.token_store import Meta

POLL_SECONDS = 0.1
QUIET_SECONDS = 2.0  # work that finishes sooner shows no progress
BACKGROUND_WORKERS = 4  # per job and host; each takes about 150 MB
EXIT_ENOUGH = 3  # exit code of a worker that is not needed, because enough others are running
LINE_SECONDS = 15.0  # between two progress lines in a log file


class Progress:
    """Progress on stderr: one line that is updated in place on a terminal, a line every LINE_SECONDS in a log."""

    def __init__(self, task: str, total: float, silent: bool = False) -> None:
        self.task, self.total, self.silent = task, total, silent
        self.begin = self.last = time.monotonic()
        self.shown, self.done_before = 0, -1.0  # bytes done by an earlier build do not count toward our speed

    def __call__(self, done: float, note: str = "") -> None:
        """Show that `done` of `total` bytes are done."""
        if self.done_before < 0:
            self.done_before = done
        now = time.monotonic()
        tty = sys.stderr.isatty()
        wait = 0.2 if tty else LINE_SECONDS
        if self.silent or now - self.begin < QUIET_SECONDS or (self.shown and now - self.last < wait):
            return
        rate = (done - self.done_before) / (now - self.begin) / 1e6
        text = f"{self.task}: {100 * done / max(self.total, 1):.0f}%, {rate:.1f} MB/s{note and ', '}{note}"
        print(f"\r{text:<{self.shown}}" if tty else text, end="" if tty else "\n", file=sys.stderr, flush=True)
        self.last, self.shown = now, len(text)

    def close(self) -> None:
        """End the line that was being updated."""
        if self.shown and sys.stderr.isatty():
            print(file=sys.stderr)


def prepare(cache: Cache) -> None:
    """Create the folder and the index unless they exist; only one process scans the corpus.

    Raises DataError after removing the folder, or RunError if the folder cannot be created.
    """
    try:
        make_folder(cache.folder.parent, parents=True)
        for folder in (cache.folder, cache.claims, cache.folder / "shards"):
            make_folder(folder)
    except OSError as error:
        where = error.filename or cache.folder
        raise RunError(f"cannot create {where}: {error.strerror}; set system.cache_dir") from None
    progress = Progress(f"finding lines of {cache.name}", cache.size)
    try:
        with removed_if_refused(cache), Claims(cache.claims) as claims:
            while not cache.is_indexed() and cache.meta() is None:
                with claims.holding("index", take_over=True) as acquired:
                    if acquired and not cache.is_indexed():
                        token_cache.write_index(cache, progress)
                if not acquired:
                    progress(0, f"waiting for {claims.describe_owner('index')}")
                    time.sleep(POLL_SECONDS)
    except FileNotFoundError:  # the process that scanned the corpus has rejected it: find out why
        return prepare(cache)
    return progress.close()


@contextlib.contextmanager
def removed_if_refused(cache: Cache) -> Iterator[None]:
    """Remove the folder if the corpus turns out to be unusable."""
    try:
        yield
    except UserError:
        remove(cache.folder)
        raise


def build(config: DataConfig, cache_dir: Path, workers: int) -> Meta:
    """Complete the cache with `workers` processes, including this one, and return its meta.json.

    The work is shared with other running builds. Raises DataError if the corpus cannot be used, RunError if the cache
    cannot be written.
    """
    cache = Cache.of(config, cache_dir)
    with removed_if_refused(cache):
        _build(cache, config, cache_dir, workers)
        while not cache.folder.exists():  # another process has rejected the corpus: find out why
            _build(cache, config, cache_dir, workers)
    meta = cache.meta()
    if meta is None:
        raise RunError(f"{cache.folder} was removed during the build; start again")
    token_cache.sweep(cache)  # again, because a worker that started late may have created folders
    return meta


def _build(cache: Cache, config: DataConfig, cache_dir: Path, workers: int) -> None:
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        if cache.meta() is None:
            prepare(cache)
            count = min(workers, cache.shard_count()) - 1
            helpers = [start_worker(config, cache_dir, count) for _ in range(count)]
            work(cache, Progress(f"tokenizing {cache.name}", cache.size))
    except OSError as error:
        # Not an error if another process has joined the shards and removed them
        if cache.meta() is None and cache.folder.exists():
            reason = f"write failed: {error.strerror or error}"
            raise RunError(f"{error.filename or cache.folder}: {reason}; free space or set system.cache_dir") from None
    finally:
        for helper in helpers:
            stop_worker(helper)


def start_worker(
    config: DataConfig, cache_dir: Path, limit: int, nice: int = 0, stderr: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a worker process that ends when this one does; at most `limit` run at a time per job and host."""
    command = [sys.executable, "-P", "-m", "ablatrix.trainer.data.cache_builder"]
    command += [config.model_dump_json(), str(cache_dir), str(limit), str(nice)]
    nothing, environ = subprocess.DEVNULL, module_environment()
    return subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=nothing, stderr=stderr)


def start_background(config: DataConfig, cache_dir: Path) -> list[subprocess.Popen[bytes]]:
    """Start workers that use only cores and time that the run leaves idle."""
    count = min(allotted_cores(), BACKGROUND_WORKERS)
    return [start_worker(config, cache_dir, count, nice=19, stderr=subprocess.PIPE) for _ in range(count)]


def stop_worker(worker: subprocess.Popen[bytes]) -> None:
    """Terminate a worker and wait for it to exit."""
    if worker.stdin is not None:
        worker.stdin.close()
    worker.terminate()
    worker.wait()
    if worker.stderr is not None:
        worker.stderr.close()


def work(cache: Cache, progress: Progress) -> None:
    """Build shards until the cache is complete. Raises DataError, or OSError if the disk fails."""
    lines = cache.lines()
    count = cache.shard_count()
    encoder: Encoder | None = None
    with Claims(cache.claims) as claims:
        while cache.meta() is None:
            done = cache.shards_done()
            progress(len(done) / count * cache.size)
            missing = [k for k in range(count) if k not in done]
            if missing:
                encoder = encoder or Encoder(cache.tokenizer)
                worked = _build_shards(cache, lines, encoder, claims, missing, progress=progress)
                claim = f"{missing[0]:05d}"
            else:
                worked, claim = _join(cache, lines, claims), "join"
            if not worked:
                progress(len(done) / count * cache.size, f"waiting for {claims.describe_owner(claim)}")
                time.sleep(POLL_SECONDS)
    progress.close()


def _build_shards(
    cache: Cache, lines: Lines, encoder: Encoder, claims: Claims, missing: list[int], *, progress: Progress
) -> bool:
    """Build the missing shards that are not claimed; if all are claimed, take over those of dead workers.

    Return False if no shard could be claimed.
    """
    built = 0
    for take_over in (False, True):
        for number in missing:
            if cache.has_shard(number):
                continue
            with claims.holding(f"{number:05d}", take_over) as acquired:
                if acquired and not cache.has_shard(number):
                    shard = shards.encode_shard(lines, cache.shard_lines(lines, number), encoder)
                    shard.write(cache.shard_file(number))
                    cache.check_unchanged()
            built += acquired
            progress((number + 1) * cache.size / cache.shard_count())
        if built:
            return True
    return False


def _join(cache: Cache, lines: Lines, claims: Claims) -> bool:
    with claims.holding("join", take_over=True) as acquired:
        if acquired and cache.meta() is None:
            with contextlib.suppress(FileNotFoundError):  # a corrupt shard was removed and will be built again
                token_cache.join_shards(cache, lines)
    return acquired


def main(argv: list[str]) -> int:
    """Run one worker process."""
    config, cache_dir, limit, nice = DataConfig(**json.loads(argv[0])), Path(argv[1]), int(argv[2]), int(argv[3])
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.nice(nice)
    cache = Cache.of(config, cache_dir)
    try:
        prepare(cache)
        with Claims(cache.claims) as claims:
            if not any(claims.acquire(name, take_over=True) for name in worker_slots(limit)):
                return EXIT_ENOUGH
            work(cache, Progress("", 0, silent=True))
    except AblatrixError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if cache.meta() is None:
            print(f"cannot write to {cache.folder}: {error}", file=sys.stderr)
            return 1
    token_cache.sweep(cache)
    return 0


def worker_slots(limit: int) -> list[str]:
    """Return the claims of which a worker needs one: runs of a job, or of a machine without Slurm, share cores."""
    job = f"{socket.gethostname()}-{os.environ.get('SLURM_JOB_ID', '')}"
    return [f"worker-{job}-{k}" for k in range(limit)]


def _exit_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would be held when the interpreter exits
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

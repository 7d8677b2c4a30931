"""Building a token cache: worker processes that share the shards of a file, on one host or on many.

`python -m ablatrix.trainer.data.cache_builder DATA_CONFIG_JSON CACHE_DIR LIMIT NICE` is one worker. It ends when the
cache is complete, when its standard input is closed (its parent died), or with the message of an error and its exit code.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data import token_cache
from ablatrix.trainer.data.corpus import Lines
from ablatrix.trainer.data.encoder import Encoder
from ablatrix.trainer.data.shard_claims import STALE_SECONDS, Claims
from ablatrix.trainer.data.token_cache import Cache
from ablatrix.trainer.rundir.cpus import allotted_cores
from ablatrix.trainer.rundir.errors import AblatrixError, RunError
from ablatrix.trainer.rundir.program import ROOT
from ablatrix.trainer.rundir.files import is_own, make_folder, owner_name

POLL_SECONDS = 0.1
QUIET_SECONDS = 2.0  # work that ends sooner needs no progress display
BACKGROUND_WORKERS = 4  # of one job on one host; each takes about 150 MB
EXIT_ENOUGH = 3  # of a worker that found enough others
LINE_SECONDS = 15.0  # between two lines of progress in a log file


class Progress:
    """How far something is, on stderr: one line that is rewritten on a terminal, a line now and then in a log."""

    def __init__(self, what: str, total: float, silent: bool = False) -> None:
        self.what, self.total, self.silent = what, total, silent
        self.begin = self.last = time.monotonic()
        self.shown, self.done_before = 0, -1.0  # what an earlier build did says nothing about our speed

    def __call__(self, done: float, note: str = "") -> None:
        """done: bytes, of `total`."""
        if self.done_before < 0:
            self.done_before = done
        now = time.monotonic()
        tty = sys.stderr.isatty()
        wait = 0.2 if tty else LINE_SECONDS
        if self.silent or now - self.begin < QUIET_SECONDS or (self.shown and now - self.last < wait):
            return
        rate = (done - self.done_before) / (now - self.begin) / 1e6
        text = f"{self.what}: {100 * done / max(self.total, 1):.0f}%, {rate:.1f} MB/s{note and ', '}{note}"
        print(f"\r{text:<{self.shown}}" if tty else text, end="" if tty else "\n", file=sys.stderr, flush=True)
        self.last, self.shown = now, len(text)

    def close(self) -> None:
        """End the line that was being rewritten."""
        if self.shown and sys.stderr.isatty():
            print(file=sys.stderr)


def prepare(cache: Cache) -> None:
    """Make the folder and the index, unless they are there; of several processes one scans. Raises DataError.

    Where another user builds in a folder that we may not write, that one's index is waited for. Raises RunError where
    nothing comes of it.
    """
    if _is_anothers(cache):
        return _await(cache, lambda: cache.scanned() or cache.meta() is not None)
    try:
        make_folder(cache.folder.parent, parents=True)
        make_folder(cache.folder)
        make_folder(cache.claims)
        make_folder(cache.folder / "shards")
    except OSError as error:
        where = error.filename or cache.folder
        raise RunError(f"{where}: cannot be made: {error.strerror}; set system.cache_dir") from None
    progress = Progress(f"finding lines of {cache.name}", cache.size)
    with Claims(cache.claims) as claims:
        while not cache.scanned() and cache.meta() is None:
            with claims.holding("index", take_over=True) as ours:
                if ours and not cache.scanned():
                    token_cache.write_index(cache, progress)
            if not ours:
                progress(0, f"waiting for {claims.owner('index')}")
                time.sleep(POLL_SECONDS)
    progress.close()
    return None


def _is_anothers(cache: Cache) -> bool:
    """Is the folder there, of another user, and not for us to write?"""
    return os.path.isdir(cache.folder) and not os.access(cache.folder, os.W_OK | os.X_OK) and not is_own(cache.folder)


def _await(cache: Cache, ready: Callable[[], bool]) -> None:
    """Wait for what another user builds. Raises RunError where nothing has moved for longer than a dead owner's claim
    would be waited for."""
    progress = Progress(f"tokenising {cache.name}", cache.size)
    seen, since = None, time.monotonic()
    while not ready():
        if (now := _signs_of_life(cache.folder)) != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since > STALE_SECONDS:
            raise RunError(
                f"{cache.folder}: is of {owner_name(cache.folder)}, who has not finished it and is not at work; set "
                "system.cache_dir to a folder of your own, or have warm-cache --tokens finish it there"
            )
        progress(0, f"waiting for {owner_name(cache.folder)}")
        time.sleep(POLL_SECONDS)
    progress.close()


def _signs_of_life(folder: Path) -> list[tuple[str, int]]:
    """What is in a cache's folder, and when it changed: claims beat, shards appear, files grow."""
    signs = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):  # gone meanwhile
            signs.append((str(path), path.stat().st_mtime_ns))
    return signs


def build(config: DataConfig, cache_dir: Path, workers: int) -> dict[str, Any]:
    """Complete the cache, with `workers` processes of which this is one, and return its meta.json.

    Others may be at it: the work is shared. Raises DataError (the file cannot be used) or RunError (nor can the disk).
    """
    cache = Cache.of(config, cache_dir)
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        if cache.meta() is None:
            prepare(cache)
            if _is_anothers(cache):
                _await(cache, lambda: cache.meta() is not None)
            else:
                count = min(workers, cache.shard_count()) - 1
                helpers = [start_worker(config, cache_dir, count) for _ in range(count)]
                work(cache, Progress(f"tokenising {cache.name}", cache.size))
    except OSError as error:
        # Where another process joined the shards and removed them, all is well
        if cache.meta() is None:
            reason = f"cannot be written: {error.strerror or error}"
            raise RunError(f"{error.filename or cache.folder}: {reason}; free space or set system.cache_dir") from None
    finally:
        for helper in helpers:
            stop_worker(helper)
    meta = cache.meta()
    if meta is None:
        raise RunError(f"{cache.folder}: was removed while it was being built; start again")
    token_cache.sweep(cache)  # a worker that came late made its folders anew
    return meta


def start_worker(
    config: DataConfig, cache_dir: Path, limit: int, nice: int = 0, stderr: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """A worker as a process of its own, which ends when this one does; of one job and host, `limit` at a time work."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))}
    command = [
        sys.executable,
        "-P",
        "-m",
        "ablatrix.trainer.data.cache_builder",
        config.model_dump_json(),
        str(cache_dir),
        str(limit),
        str(nice),
    ]
    return subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr)


def start_background(config: DataConfig, cache_dir: Path) -> list[subprocess.Popen[bytes]]:
    """Workers that take what time and cores a run leaves them."""
    count = min(allotted_cores(), BACKGROUND_WORKERS)
    return [start_worker(config, cache_dir, count, nice=19, stderr=subprocess.PIPE) for _ in range(count)]


def stop_worker(worker: subprocess.Popen[bytes]) -> None:
    """End a worker and wait for it."""
    if worker.stdin is not None:
        worker.stdin.close()
    worker.terminate()
    worker.wait()
    if worker.stderr is not None:
        worker.stderr.close()


def work(cache: Cache, progress: Progress) -> None:
    """Make shards until the cache is complete. Raises DataError, or OSError where the disk refuses."""
    lines = cache.lines()
    shards = cache.shard_count()
    encoder: Encoder | None = None
    with Claims(cache.claims) as claims:
        while cache.meta() is None:
            done = cache.shards_done()
            progress(len(done) / shards * cache.size)
            todo = [k for k in range(shards) if k not in done]
            if todo:
                encoder = encoder or Encoder(cache.tokenizer)
                worked, name = _make_shards(cache, lines, encoder, claims, todo, progress), f"{todo[0]:05d}"
            else:
                worked, name = _join(cache, lines, claims), "join"
            if not worked:
                progress(len(done) / shards * cache.size, f"waiting for {claims.owner(name)}")
                time.sleep(POLL_SECONDS)
    progress.close()


def _make_shards(
    cache: Cache, lines: Lines, encoder: Encoder, claims: Claims, todo: list[int], progress: Progress
) -> bool:
    """Make the shards that nobody works at; only if there is none, one of a dead worker. False: nothing to do."""
    made, per_shard = 0, cache.size / cache.shard_count()
    for take_over in (False, True):
        for shard in todo:
            if cache.has_shard(shard):
                continue
            with claims.holding(f"{shard:05d}", take_over) as ours:
                if ours and not cache.has_shard(shard):
                    made_here = token_cache.encode_shard(lines, cache.shard_lines(lines, shard), encoder)
                    made_here.write(cache.shard_file(shard))
                    cache.unchanged()
            made += ours
            progress((shard + 1) * per_shard)
        if made:
            return True
    return False


def _join(cache: Cache, lines: Lines, claims: Claims) -> bool:
    with claims.holding("join", take_over=True) as ours:
        if ours and cache.meta() is None:
            with contextlib.suppress(FileNotFoundError):  # a shard was not whole and is gone: it is made again
                token_cache.join_shards(cache, lines)
    return ours


def main(argv: list[str]) -> int:
    """One worker process."""
    config, cache_dir, limit, nice = DataConfig(**json.loads(argv[0])), Path(argv[1]), int(argv[2]), int(argv[3])
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.nice(nice)
    cache = Cache.of(config, cache_dir)
    try:
        prepare(cache)
        with Claims(cache.claims) as claims:
            if not any(claims.acquire(name, take_over=True) for name in _places(limit)):
                return EXIT_ENOUGH
            work(cache, Progress("", 0, silent=True))
    except AblatrixError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if cache.meta() is None:
            print(f"{cache.folder}: cannot be written: {error}", file=sys.stderr)
            return 1
    token_cache.sweep(cache)
    return 0


def _places(limit: int) -> list[str]:
    """Claims of which a worker needs one: the runs that share a job, or a machine without Slurm, share its cores."""
    job = f"{socket.gethostname()}-{os.environ.get('SLURM_JOB_ID', '')}"
    return [f"worker-{job}-{k}" for k in range(limit)]


def _die_with_parent() -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock would be held when the interpreter ends
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Count the batch rows in an epoch, to convert `trainer.epochs` to a number of steps."""

from __future__ import annotations

import shlex
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.trainer.data.corpus_files import find_files, is_flat, total_size
from ablatrix.trainer.rundir.errors import DataError
from ablatrix.trainer.rundir.program import program

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig, RunConfig

SMALL_CORPUS = 64 << 20  # bytes: a corpus up to this size is tokenized immediately, which takes seconds


def rows_per_epoch(config: RunConfig) -> float:
    """Return the batch rows in one pass over the training tokens that data.sampling can reach.

    Tokenizes a small corpus. Raises DataError, with the command to run, if a larger corpus has no token cache yet.
    """
    return _count_rows(config.data, Path(config.system.cache_dir))


@lru_cache
def _count_rows(data: DataConfig, cache_dir: Path) -> float:
    from ablatrix.trainer.data import corpus_usage  # numpy takes a while to import
    from ablatrix.trainer.data.token_cache import Cache
    from ablatrix.trainer.data.tokens import open_tokens

    files = find_files(data)
    if not is_flat(files[0]) and total_size(data) > SMALL_CORPUS and Cache.of(data, cache_dir).meta() is None:
        raise DataError(
            f"the tokens of {files[0] if len(files) == 1 else f'{len(files)} files'} are not counted yet; run "
            f"`{_counting_command(data, cache_dir)}`, or set trainer.max_iters"
        )
    return corpus_usage.count_rows(open_tokens(data, cache_dir), data)


def _counting_command(data: DataConfig, cache_dir: Path) -> str:
    options = ["--tokenizer", data.tokenizer, "--cache-dir", str(cache_dir)]
    options += ["--text-key", data.text_key] if data.text_key != "text" else []
    return f"{program()} warm-cache {shlex.join([*options, '--tokens', *data.entries])}"

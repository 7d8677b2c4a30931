"""Open the tokens of a corpus: its cache, complete or still being built, or its flat files."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.trainer.data import cache_builder, tokenizer
from ablatrix.trainer.data.corpus_files import find_files, is_flat
from ablatrix.trainer.data.flat_bin import FlatStore
from ablatrix.trainer.data.formats import detect
from ablatrix.trainer.data.on_the_fly import GrowingStore
from ablatrix.trainer.data.token_cache import Cache
from ablatrix.trainer.data.token_store import CompleteStore, TokenStore
from ablatrix.trainer.rundir.cpus import allotted_cores

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig

logger = logging.getLogger(__name__)

WAIT_BYTES = 64 << 20  # a corpus up to this size is tokenized before the first step, which takes seconds


def open_tokens(config: DataConfig, cache_dir: Path) -> TokenStore:
    """Return the tokens of a corpus, from the cache that all runs share.

    A missing cache is built first, unless the corpus is so large that the run would have to wait: then the cache is
    built in the background, and documents are tokenized when drawn. Raises DataError if the corpus cannot be used,
    OfflineCacheError if the tokenizer is missing.
    """
    if is_flat(find_files(config)[0]):
        return FlatStore(config, tokenizer.find(config.tokenizer, cache_dir))
    cache = Cache.of(config, cache_dir)
    meta = cache.meta()
    if meta is None and not cache.folder.is_relative_to(cache_dir):
        logger.warning(f"cannot write to {cache_dir}; tokens are kept in {cache.folder.parents[1]}")
    if meta is None and cache.size > WAIT_BYTES and all(detect(path).direct for path in cache.files):
        cache_builder.prepare(cache)
        print(f"{cache.name}: tokenizing on demand; the token cache is built in the background", file=sys.stderr)
        return GrowingStore(cache, partial(cache_builder.start_background, config, cache_dir))
    return CompleteStore(cache.folder, meta or cache_builder.build(config, cache_dir, allotted_cores()))

"""Settings derived from the corpus: the held-out files next to it, and the number of steps for `trainer.epochs`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.trainer.data.corpus_files import find_validation
from ablatrix.trainer.data.epochs import rows_per_epoch
from ablatrix.trainer.rundir.errors import DataError

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig, RunConfig


def follow_corpus(config: RunConfig, find: Callable[[DataConfig], Sequence[Path]] = find_validation) -> RunConfig:
    """Return the configuration with the settings derived from its corpus filled in.

    `data.test_file` becomes the validation files of a training split, unless it or `data.test_size` is set. find:
    returns these files. Raises ConfigError if epochs cannot be converted to steps.
    """
    data = config.data
    if not data.test_file and "test_size" not in data.model_fields_set and data.split == "train" and data.file_path:
        try:
            found = tuple(map(str, find(data)))
        except DataError:  # reported later, when the files are read
            found = ()
        if found:
            data = data.model_copy(update={"test_file": found[0] if len(found) == 1 else found})
            config = config.model_copy(update={"data": data})
    return config.with_steps(rows_per_epoch)


def follower() -> Callable[[RunConfig], RunConfig]:
    """Return `follow_corpus` for the cells of a study, which looks for the files of each corpus once."""
    return partial(follow_corpus, find=cache(find_validation))

"""Settings that follow from the corpus: the held-out files beside it, and the steps of `trainer.epochs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ablatrix.trainer.data.corpus_files import find_validation
from ablatrix.trainer.data.epochs import rows_per_epoch
from ablatrix.trainer.rundir.errors import DataError

if TYPE_CHECKING:
    from ablatrix.trainer.config import RunConfig


def follow_corpus(config: RunConfig) -> RunConfig:
    """Return the configuration with what its corpus decides.

    The validation files of a training split are `data.test_file`, unless that or `data.test_size` is given. Raises
    ConfigError if epochs cannot be counted.
    """
    data = config.data
    if not data.test_file and "test_size" not in data.model_fields_set and data.split == "train" and data.file_path:
        try:
            found = tuple(map(str, find_validation(data)))
        except DataError:  # reported where the files are read
            found = ()
        if found:
            data = data.model_copy(update={"test_file": found[0] if len(found) == 1 else found})
            config = config.model_copy(update={"data": data})
    return config.with_steps(rows_per_epoch)

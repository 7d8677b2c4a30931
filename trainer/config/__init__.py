"""Configuration of a run: sections, validation, command line and fingerprint. Torch-free."""

from ablatrix.trainer.config.flags import from_flags
from ablatrix.trainer.config.run_config import RunConfig
from ablatrix.trainer.config.sections import (
    CallbacksConfig,
    DataConfig,
    InfoConfig,
    Section,
    SystemConfig,
    TrainerConfig,
)
from ablatrix.trainer.config.validation import keys, load, validate

__all__ = [
    "CallbacksConfig",
    "DataConfig",
    "InfoConfig",
    "RunConfig",
    "Section",
    "SystemConfig",
    "TrainerConfig",
    "from_flags",
    "keys",
    "load",
    "validate",
]

"""Contradictions between the sections of a configuration. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ablatrix.trainer.config import optimization

if TYPE_CHECKING:
    from ablatrix.models.config import ResolvedGPTConfig
    from ablatrix.trainer.config.sections import DataConfig, TrainerConfig


def find_contradictions(
    data: DataConfig, model: ResolvedGPTConfig, trainer: TrainerConfig, vocab_size: int
) -> Iterator[str]:
    """Yield one line per contradiction. vocab_size: the tokenizer's number of tokens."""
    if not data.file_path:
        yield "data.file_path: missing; give the path of a JSONL file"
    if data.test_file and data.split == "test":
        yield (
            "data.split: test trains on the documents held out of data.file_path, but data.test_file replaces them; "
            "remove one of the two"
        )
    if data.block_size > model.block_size:
        yield (
            f"data.block_size: {data.block_size} exceeds the model's block_size {model.block_size}; "
            "lower data.block_size or raise model.block_size"
        )
    yield from _sampling(data, model, trainer, vocab_size)
    if model.vocab_size < vocab_size:
        yield (
            f"model.vocab_size: {model.vocab_size} is less than the {vocab_size} tokens of "
            f"tokenizer {data.tokenizer!r}; leave it out"
        )
    if trainer.grad_accum > trainer.batch_size:
        yield (
            f"trainer.grad_accum: {trainer.grad_accum} exceeds trainer.batch_size {trainer.batch_size}; "
            "each part needs at least one window"
        )
    if trainer.activation_checkpointing and trainer.compile:
        yield (
            "trainer.activation_checkpointing: incompatible with trainer.compile, whose captured steps cannot "
            "replay dropout masks; set one of them to false"
        )
    if trainer.early_stop_patience and not (trainer.eval_interval and (data.held_out or data.test_file)):
        yield (
            "trainer.early_stop_patience: no evaluations of a held-out set to count; set "
            "trainer.eval_interval and data.test_size"
        )
    lengths = trainer.eval_blocks
    if lengths and min(lengths) > model.block_size and not model.extrapolates:
        yield (
            f"trainer.eval_blocks: {model.positions} positions end at block_size {model.block_size}, so none of "
            f"{', '.join(map(str, lengths))} can be evaluated; add {model.block_size}, or choose different positions"
        )
    yield from optimization.find_problems(trainer)


def _sampling(data: DataConfig, model: ResolvedGPTConfig, trainer: TrainerConfig, vocab_size: int) -> Iterator[str]:
    """Yield one line per contradiction between data.sampling, separator and document_mask."""
    if data.sampling == "document":
        for name in ("document_mask", "separator"):
            if getattr(data, name) not in (None, False):
                yield f"data.{name}: only for data.sampling packed or stream; other windows contain one document"
        return
    if data.separator is None:
        yield (
            f"data.sampling: {data.sampling} needs a token between documents, and tokenizer {data.tokenizer!r} has no "
            "end-of-text token; set data.separator to a token id that no document contains"
        )
    elif data.separator >= vocab_size:
        yield f"data.separator: {data.separator} exceeds the last of the {vocab_size} tokens of {data.tokenizer!r}"
    if data.document_mask and trainer.strategy == "pipeline":
        yield "data.document_mask: not available with trainer.strategy pipeline; choose ddp or fsdp"
    if data.document_mask and "positions" in model.custom_components:
        yield f"data.document_mask: {model.positions} cannot restart at each document; choose built-in positions"

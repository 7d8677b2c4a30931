"""Checks whether a number of processes can share a batch and a model. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablatrix.trainer.config.run_config import RunConfig

WHOLE_MATRICES = ("muon", "adafactor")  # optimizers that need whole matrices


def share_problems(config: RunConfig, world: int) -> list[str]:
    """Return the reasons why `world` processes cannot share this run, one line each. config: resolved."""
    settings, strategy = config.trainer, config.trainer.strategy
    if world == 1:
        return []
    problems = _pipeline_problems(config, world) if strategy == "pipeline" else _batch_problems(config, world)
    if strategy == "fsdp" and settings.optimizer in WHOLE_MATRICES:
        problems.append(
            f"trainer.optimizer: {settings.optimizer} needs whole matrices, which fsdp shards; use adamw, or "
            "trainer.strategy ddp"
        )
    if strategy in ("fsdp", "pipeline") and settings.sample_interval:
        problems.append(
            f"trainer.sample_interval: with {strategy} no process has the whole model to draw samples from; set it to 0"
        )
    return problems


def _batch_problems(config: RunConfig, world: int) -> list[str]:
    settings = config.trainer
    if settings.batch_size % world:
        return [
            f"trainer.batch_size: {settings.batch_size} windows cannot be split evenly among {world} processes; "
            f"use a multiple of {world}"
        ]
    if settings.grad_accum > settings.batch_size // world:
        return [
            f"trainer.grad_accum: {settings.grad_accum} exceeds the {settings.batch_size // world} windows of "
            f"each of {world} processes; each part needs at least one window"
        ]
    return []


def _pipeline_problems(config: RunConfig, world: int) -> list[str]:
    settings, layers, problems = config.trainer, config.model.sizes()[0], []
    pieces, per_rank = microbatches(config, world), settings.pipeline_stages_per_rank
    stages = world * per_rank
    if layers is not None and layers < stages:
        fewer = "fewer processes" if per_rank == 1 else "fewer processes or trainer.pipeline_stages_per_rank"
        problems.append(f"trainer.strategy: {layers} layers cannot be split into {stages} stages; use {fewer}")
    sizes = settings.pipeline_split
    if sizes and layers is not None and (len(sizes) != stages or sum(sizes) != layers):
        problems.append(
            f"trainer.pipeline_split: {','.join(map(str, sizes))} does not divide {layers} layers among {stages} "
            "stages; give the layers of each stage, or leave it out"
        )
    if per_rank > 1 and settings.pipeline_schedule != "1f1b":
        problems.append(
            f"trainer.pipeline_stages_per_rank: {per_rank} stages are interleaved by trainer.pipeline_schedule 1f1b "
            "only; set that, or 1 stage per rank"
        )
    elif per_rank > 1 and pieces % max(1, pieces // world):
        problems.append(
            f"trainer.pipeline_microbatches: {pieces} cannot be interleaved by {world} processes; use a multiple of "
            f"{world}"
        )
    if settings.batch_size % pieces:
        problems.append(
            f"trainer.batch_size: {settings.batch_size} windows cannot be cut into {pieces} equal micro-batches; use "
            f"a multiple of {pieces}, or set trainer.pipeline_microbatches"
        )
    elif settings.pipeline_schedule == "1f1b" and pieces < world:
        problems.append(
            f"trainer.pipeline_microbatches: 1f1b needs at least as many as there are processes ({world}), got {pieces}"
        )
    if settings.grad_accum > 1:
        problems.append(
            f"trainer.grad_accum: {settings.grad_accum}, but a pipeline cuts its batches itself; set "
            "trainer.pipeline_microbatches instead"
        )
    if config.model.tie_embeddings:
        problems.append("model.tie_embeddings: the embeddings and the head are in different processes; set it to false")
    return problems


def microbatches(config: RunConfig, world: int) -> int:
    """Return the number of microbatches that a pipeline splits a batch into."""
    return config.trainer.pipeline_microbatches or world

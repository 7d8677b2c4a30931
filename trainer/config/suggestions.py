"""Suggestions for unknown keys: the nearest valid name, or our name for a setting of another program."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

_NAMES = {
    # settings of the trainer and the model
    "learning_rate": "lr max_lr peak_lr base_lr eta",
    "max_iters": "steps num_steps max_steps n_steps total_steps train_steps iters num_iters iterations epochs n_epochs "
    "num_epochs num_train_epochs max_epochs niter",
    "batch_size": "bs batch batchsize micro_batch_size per_device_train_batch_size train_batch_size",
    "grad_accum": "gradient_accumulation_steps accumulate_grad_batches accumulation_steps grad_accumulation ga",
    "dtype": "precision amp fp16 bf16 mixed_precision torch_dtype",
    "optimizer": "optim opt",
    "betas": "beta1 beta2 adam_betas adam_beta1 adam_beta2",
    "weight_decay": "wd decay l2",
    "grad_norm_clip": "clip grad_clip clip_grad max_grad_norm gradient_clip gradient_clip_val clip_norm",
    "warmup_steps": "warmup warmup_iters num_warmup_steps lr_warmup_steps",
    "schedule": "scheduler lr_scheduler lr_schedule lr_scheduler_type lr_decay_style",
    "min_lr_ratio": "min_lr lr_min final_lr eta_min",
    "decay_steps": "lr_decay_iters lr_decay_steps",
    "log_interval": "log_every logging_steps log_steps log_freq",
    "eval_interval": "eval_every eval_steps val_interval val_every eval_freq val_check_interval",
    "ckpt_interval": "save_every save_steps save_interval checkpoint_interval checkpoint_every save_freq",
    "save_total_limit": "keep_checkpoints max_checkpoints",
    "early_stop_patience": "patience early_stopping early_stopping_patience",
    "num_workers": "workers num_threads",
    "n_layer": "n_layers num_layers layers depth num_hidden_layers nlayers",
    "n_head": "n_heads num_heads heads num_attention_heads nheads",
    "n_kv_head": "n_kv_heads num_kv_heads num_key_value_heads kv_heads",
    "n_embd": "hidden_size d_model dim width hidden_dim embed_dim embedding_dim n_embed model_dim",
    "block_size": "seq_len seq_length sequence_length context context_length context_size ctx_len n_ctx max_seq_len "
    "max_seq_length max_length max_position_embeddings",
    "resid_pdrop": "dropout pdrop drop dropout_rate dropout_p",
    "attn_pdrop": "attn_dropout attention_dropout",
    "embd_pdrop": "embd_dropout embed_dropout emb_dropout embedding_dropout",
    "feedforward": "activation activation_function hidden_act act mlp ffn feed_forward",
    "norm": "normalization normalization norm_type layer_norm",
    "positions": "pos_emb pos_embedding position_embedding positional_encoding pos_encoding position_encoding pos pe",
    "rope": "rotary use_rope rotary_embeddings",
    "tie_embeddings": "weight_tying tie_weights tie_word_embeddings tied_embeddings",
    "model_type": "preset type model_name size model_size",
    "bias": "use_bias",
    "file_path": "path file root data_path data_file dataset dataset_path train_file filename corpus",
    "test_size": "val_size valid_size eval_size validation_size",
    "wandb_project": "project",
    # keys of an experiment file
    "seeds": "seed n_seeds num_seeds random_seed",
    "vars": "variables params parameters",
    "base": "settings baseline common",
    "features": "ablations ablation variants experiments sweep grid",
    "extends": "include includes inherit inherits parent parents _base_ defaults import",
    "exclude": "skip incompatible",
    "cells": "combinations",
    "command": "cmd script program run entrypoint",
    "flags": "args arguments",
    "workdir": "cwd working_dir work_dir chdir",
    "env": "environment env_vars",
    "output": "out out_dir output_dir outdir results_dir log_dir",
    "slurm": "sbatch cluster resources job",
    "launcher": "executor backend",
    "experiment_info": "info description about notes meta metadata",
    "budget": "gpu_hours max_gpu_hours",
    # resources
    "gpus_per_node": "gpus gpu num_gpus ngpus n_gpus gres gpus_per_task gpu_count",
    "cpus_per_task": "cpus cpu ncpus num_cpus cores threads",
    "mem": "memory mem_gb ram mem_per_node",
    "time": "walltime time_limit timeout timeout_min duration hours max_time",
    "partition": "queue partitions",
    "nodes": "num_nodes n_nodes nnodes node_count",
    "setup": "modules module module_load prologue pre_run init preamble",
    "max_parallel": "max_jobs array_parallelism concurrency max_concurrent parallel",
    "extra": "sbatch_args additional_parameters extra_args options slurm_args",
    "processes_per_node": "ntasks_per_node tasks_per_node nproc_per_node",
}
ALIASES: dict[str, list[str]] = {}
for _name, _words in _NAMES.items():
    for _word in _words.split():
        ALIASES.setdefault(_word, []).append(_name)


def nearest(key: str, known: Sequence[str]) -> str:
    """Return ' (did you mean ...?)' for a mistyped key or another program's name for it, '' if nothing is close.

    Names are compared without their section, whose letters would make `model.type` similar to `model.rope`.
    """
    section, _, word = key.rpartition(".")
    meant = ALIASES.get(word.lower().replace("-", "_"), ())
    found = [name for name in known if name.rpartition(".")[2] in meant]
    found = [name for name in found if name.startswith(f"{section}.")] or found
    elsewhere = {name.rpartition(".")[2]: name for name in reversed(known)}
    for names, likeness in ((_of_section(section, known), 0.65), (elsewhere, 0.8)):
        found = found or [names[near] for near in difflib.get_close_matches(word, list(names), 1, likeness)]
    found = found or difflib.get_close_matches(key, known, 1, 0.85)
    return f" (did you mean {found[0]}?)" if found else ""


def hint(key: str, known: Sequence[str]) -> str:
    """Return `nearest` for an unknown key, or else the keys of its section, as the end of a sentence."""
    section = key.rpartition(".")[0]
    names = ", ".join(_of_section(section, known))
    return nearest(key, known) or (f"; keys of {section}: {names}" if section and names else "")


def _of_section(section: str, known: Sequence[str]) -> dict[str, str]:
    """Return a mapping from the last part of each known key of a section to the key."""
    return {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}

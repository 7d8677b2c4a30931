"""Ablation studies of small GPTs on Slurm: one YAML file in, a verdict with statistics out."""

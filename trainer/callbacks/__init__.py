"""Callbacks: what happens at the events of a training run."""

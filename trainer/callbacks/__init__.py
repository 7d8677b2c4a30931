"""Callbacks that run at the events of a training run."""

"""Filling the offline cache: tokenizers from the hub, a folder or the embedded sample, and the proof that they load."""

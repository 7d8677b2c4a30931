"""One training run: `python -m trainer --config config.json`."""

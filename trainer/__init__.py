"""One training run: `python -m ablatrix.trainer --config config.json`."""

"""Train one run: `python -m ablatrix.trainer --config config.json`."""

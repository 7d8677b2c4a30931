"""Reproducible benchmarks behind the speed claims: ratios against peers, measured side by side."""

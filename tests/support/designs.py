"""Designs with planted effects, in the form that the report's contrasts and attribution read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ablatrix.orchestrator.report.contrasts import Contrast, Design
from ablatrix.orchestrator.study.screening import Screen

Sets = Sequence[frozenset[str]]


def plant(
    sets: Sets,
    truth: Mapping[frozenset[str], float],
    seeds: int = 3,
    noise: float = 0.0,
    factors: Mapping[str, tuple[str, ...]] | None = None,
    screen: Screen | None = None,
) -> Design:
    """Return a cell for each set of features; its value is the sum of the `truth` of all keys that are subsets of it.

    noise: standard deviation of a run; seeds differ by 0.01. factors: feature -> its levels, by default itself.
    """
    random = np.random.default_rng(1)
    names = {on: "+".join(sorted(on)) or "baseline" for on in sets}
    added = {name: sum(by for together, by in truth.items() if together <= on) for on, name in names.items()}
    values = {
        name: {seed: 3 + by + 0.01 * seed + random.normal(0, noise) for seed in range(seeds)}
        for name, by in added.items()
    }
    single = {feature: (feature,) for feature in sorted(frozenset().union(*sets))}
    return Design(names, factors or single, values, dict.fromkeys(values, seeds), screen)


def screened(screen: Screen, truth: Mapping[frozenset[str], float], seeds: int = 2, noise: float = 0.0) -> Design:
    """Return the cells of a screening design with features a, b, c and so on."""
    labels = "abcdefgh"[: screen.count]
    sets = [frozenset(f for i, f in enumerate(labels) if cell >> i & 1) for cell in screen.cells]
    return plant(sets, truth, seeds, noise, {f: (f,) for f in labels}, screen)


def mean_of(contrast: Contrast) -> float:
    assert contrast.effect is not None
    return contrast.effect.mean

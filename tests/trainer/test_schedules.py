"""The learning rate at every step."""

from __future__ import annotations

import math

import pytest

from trainer.config import TrainerConfig
from trainer.schedules import learning_rate

PEAK, STEPS, WARMUP, RATIO = 4e-3, 200, 30, 0.1


def rates(**settings: object) -> list[float]:
    config = TrainerConfig.model_validate({"learning_rate": PEAK, "max_iters": STEPS, **settings})
    return [learning_rate(step, config) for step in range(1, STEPS + 1)]


def warm(step: int) -> float:
    return PEAK * step / WARMUP


def cosine(step: int, start: int) -> float:
    low = RATIO * PEAK
    return low + (PEAK - low) * (1 + math.cos(math.pi * (step - start) / (STEPS - start))) / 2


def test_constant() -> None:
    assert rates() == [PEAK] * STEPS


def test_warmup_alone() -> None:
    expected = [warm(s) if s < WARMUP else PEAK for s in range(1, STEPS + 1)]
    assert rates(warmup_steps=WARMUP) == pytest.approx(expected, rel=1e-12)


def test_cosine_alone() -> None:
    assert rates(use_cosine=True) == pytest.approx([cosine(s, 0) for s in range(1, STEPS + 1)], rel=1e-12)


def test_warmup_and_cosine() -> None:
    expected = [warm(s) if s < WARMUP else cosine(s, WARMUP) for s in range(1, STEPS + 1)]
    got = rates(warmup_steps=WARMUP, use_cosine=True)
    assert got == pytest.approx(expected, rel=1e-12)
    assert got.index(max(got)) == WARMUP - 1 and max(got) == PEAK
    assert got[-1] == pytest.approx(RATIO * PEAK)


def test_all_steps_warmup() -> None:
    for use_cosine in (False, True):
        got = rates(warmup_steps=STEPS, use_cosine=use_cosine)
        assert got == pytest.approx([PEAK * s / STEPS for s in range(1, STEPS + 1)])


def test_one_step() -> None:
    config = TrainerConfig(max_iters=1, use_cosine=True, learning_rate=PEAK)
    assert learning_rate(1, config) == pytest.approx(RATIO * PEAK)

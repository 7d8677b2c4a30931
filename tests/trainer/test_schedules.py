"""The learning rate at every step, and what of it cannot be."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ablatrix.trainer.config import RunConfig, TrainerConfig, from_flags, optimization
from ablatrix.trainer.rundir.errors import ConfigError
from ablatrix.trainer.schedules import learning_rate

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


def test_warmup_and_cosine() -> None:
    expected = [warm(s) if s < WARMUP else cosine(s, WARMUP) for s in range(1, STEPS + 1)]
    got = rates(warmup_steps=WARMUP, use_cosine=True)
    assert got == pytest.approx(expected, rel=1e-12)
    assert got.index(max(got)) == WARMUP - 1 and max(got) == PEAK
    assert got[-1] == pytest.approx(RATIO * PEAK)


@pytest.mark.parametrize("schedule", optimization.SCHEDULES)
def test_all_steps_warmup(schedule: str) -> None:
    got = rates(warmup_steps=STEPS, schedule=schedule)
    assert got == pytest.approx([PEAK * s / STEPS for s in range(1, STEPS + 1)])


def test_one_step() -> None:
    config = TrainerConfig(max_iters=1, use_cosine=True, learning_rate=PEAK)
    assert learning_rate(1, config) == pytest.approx(RATIO * PEAK)


# ---- the others, from their papers' formulas, written out once more


@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_linear(warmup: int) -> None:
    got = rates(schedule="linear", warmup_steps=warmup, min_lr_ratio=0.2)
    expected = [PEAK * (1 - 0.8 * (s - warmup) / (STEPS - warmup)) for s in range(max(1, warmup), STEPS + 1)]
    assert got[max(1, warmup) - 1 :] == pytest.approx(expected, rel=1e-12)
    assert got[-1] == pytest.approx(0.2 * PEAK)


def test_inverse_sqrt() -> None:
    got = rates(schedule="inverse_sqrt", warmup_steps=WARMUP)
    # Vaswani et al. 2017: scale * min(step ** -0.5, step * warmup ** -1.5), here with the peak as its maximum
    expected = [PEAK * WARMUP**0.5 * min(s**-0.5, s * WARMUP**-1.5) for s in range(1, STEPS + 1)]
    assert got == pytest.approx(expected, rel=1e-12)
    assert rates(schedule="inverse_sqrt") == pytest.approx([PEAK / math.sqrt(s) for s in range(1, STEPS + 1)])


@pytest.mark.parametrize("shape", ["sqrt", "linear"])
@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_wsd(warmup: int, shape: str) -> None:
    got = rates(schedule="wsd", warmup_steps=warmup, decay_steps=50, decay_shape=shape, min_lr_ratio=0.05)
    assert got[:warmup] == pytest.approx([warm(s) for s in range(1, warmup + 1)])
    assert set(got[max(1, warmup) - 1 : 150]) == {PEAK}
    fall = [math.sqrt(i / 50) if shape == "sqrt" else i / 50 for i in range(1, 51)]
    assert got[150:] == pytest.approx([PEAK * (0.05 + 0.95 * (1 - f)) for f in fall], rel=1e-12)


def test_infinite() -> None:
    """Four phases: warm-up to 30, cool-down to 90, constant to 160, annealing to 200."""
    phases = {"warmup_steps": 30, "cooldown_steps": 60, "anneal_steps": 40}
    got = [0.0, *rates(schedule="infinite", constant_lr_ratio=0.5, min_lr_ratio=0.1, **phases)]
    constant, floor = 0.5 * PEAK, 0.1 * PEAK
    assert got[:31] == pytest.approx([warm(s) for s in range(31)])
    cooldown = [constant + (PEAK - constant) / 2 * (1 + math.cos(math.pi * (s - 30) / 60)) for s in range(30, 91)]
    assert got[30:91] == pytest.approx(cooldown, rel=1e-12)
    assert got[90:161] == pytest.approx([constant] * 71)
    anneal = [constant * (floor / constant) ** ((s - 160) / 40) for s in range(160, 201)]
    assert got[160:] == pytest.approx(anneal, rel=1e-12)
    assert got[200] == pytest.approx(floor)


def test_phases_left_out_are_filled_in() -> None:
    one = TrainerConfig(schedule="wsd", max_iters=1000, warmup_steps=100)
    assert optimization.settled(one).decay_steps == 90
    two = optimization.settled(TrainerConfig(schedule="infinite", max_iters=1000, warmup_steps=100))
    assert (two.cooldown_steps, two.anneal_steps) == (540, 135)
    for short, config in ((one, optimization.settled(one)), (two, optimization.settled(two))):
        assert [learning_rate(s, short) for s in range(1, 1001)] == [learning_rate(s, config) for s in range(1, 1001)]
        assert optimization.settled(config) == config


@st.composite
def schedules(draw: st.DrawFn) -> TrainerConfig:
    """Any schedule that a config can describe, short enough to be walked through."""
    steps = draw(st.integers(1, 60))
    name = draw(st.sampled_from(list(optimization.SCHEDULES)))
    values: dict[str, Any] = {"max_iters": steps, "schedule": name, "learning_rate": draw(st.floats(1e-6, 10))}
    values["warmup_steps"] = draw(st.integers(0, steps))
    for key in optimization.SCHEDULES[name]:
        if key in optimization.PHASES:
            values[key] = draw(st.none() | st.integers(0, steps))
        elif key == "decay_shape":
            values[key] = draw(st.sampled_from(["sqrt", "linear"]))
        else:
            values[key] = draw(st.floats(0.01, 1))
    config = TrainerConfig.model_validate(values)
    assume(not list(optimization.find_problems(config)))
    complete = optimization.settled(config)
    assert config.warmup_steps + sum(getattr(complete, key) or 0 for key in optimization.PHASES) <= steps
    return config


@settings(max_examples=150, deadline=None)
@given(schedules())
def test_rises_to_the_peak_and_never_again(config: TrainerConfig) -> None:
    peak, floor = config.learning_rate, config.min_lr_ratio * config.learning_rate
    got = [learning_rate(step, config) for step in range(1, config.max_iters + 1)]
    top = max(1, config.warmup_steps)
    up, down = got[:top], got[top - 1 :]
    assert up == sorted(up)
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(down))
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in got)
    if "min_lr_ratio" in optimization.SCHEDULES[config.schedule or ""]:
        assert min(down) >= floor * (1 - 1e-12)
    if config.warmup_steps:
        assert got[top - 1] == pytest.approx(peak)


@settings(max_examples=100, deadline=None)
@given(schedules(), st.integers(1, 60))
def test_a_shortened_run_is_still_possible(config: TrainerConfig, steps: int) -> None:
    complete = optimization.settled(config)
    short = complete.model_copy(update=optimization.shortened(complete, min(steps, config.max_iters)))
    assert list(optimization.find_problems(short)) == []
    assert short.schedule == complete.schedule


# ---- what cannot be


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"use_cosine": True, "schedule": "wsd"}, "trainer.use_cosine: true contradicts trainer.schedule wsd"),
        ({"use_cosine": False, "schedule": "cosine"}, "trainer.use_cosine: false contradicts trainer.schedule cosine"),
        ({"warmup_steps": 101}, "trainer.warmup_steps: 101 exceeds trainer.max_iters 100"),
        (
            {"schedule": "wsd", "warmup_steps": 60, "decay_steps": 50},
            "trainer.decay_steps: warmup_steps 60 + decay_steps 50 make 110 steps, more than trainer.max_iters 100",
        ),
        (
            {"schedule": "infinite", "warmup_steps": 10, "cooldown_steps": 60, "anneal_steps": 40},
            "trainer.cooldown_steps: warmup_steps 10 + cooldown_steps 60 + anneal_steps 40 make 110 steps, more",
        ),
        (
            {"schedule": "infinite", "warmup_steps": 30, "anneal_steps": 80},
            "trainer.anneal_steps: warmup_steps 30 + anneal_steps 80 make 110 steps, more than trainer.max_iters 100",
        ),
        ({"schedule": "infinite", "min_lr_ratio": 0.0}, "trainer.min_lr_ratio: 0 is never reached"),
        ({"schedule": "infinite", "constant_lr_ratio": 0.05}, "trainer.constant_lr_ratio: 0.05 is less than"),
        ({"min_lr_ratio": 0.2}, "trainer.min_lr_ratio: 0.2 would be ignored by schedule constant; leave it out, or"),
        ({"schedule": "inverse_sqrt", "min_lr_ratio": 0.2}, "would be ignored by schedule inverse_sqrt"),
        ({"schedule": "cosine", "decay_steps": 5}, "would be ignored by schedule cosine; leave it out, or choose"),
        ({"decay_shape": "linear"}, "trainer.decay_shape: linear would be ignored by schedule constant"),
        ({"use_cosine": True, "anneal_steps": 5}, "choose schedule infinite"),
        ({"momentum": 0.8}, "trainer.momentum: 0.8 would be ignored by optimizer adamw; leave it out, or choose"),
        ({"optimizer": "sgd", "betas": [0.8, 0.9]}, "trainer.betas: [0.8, 0.9] would be ignored by optimizer sgd"),
        ({"optimizer": "adafactor", "nesterov": False}, "choose optimizer sgd, muon"),
        ({"optimizer": "sgd", "momentum": 0.0, "nesterov": True}, "trainer.nesterov: true needs trainer.momentum"),
    ],
)
def test_what_cannot_be_is_an_error_of_the_config(values: dict[str, Any], words: str) -> None:
    run = RunConfig.model_validate({"data": {"file_path": "x"}, "trainer": {"max_iters": 100, **values}})
    with pytest.raises(ConfigError) as caught:
        run.resolved(100)
    assert len(caught.value.problems) == 1
    assert words in caught.value.problems[0]


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "muon", "betas": [0.8, 0.9], "momentum": 0.9, "nesterov": False, "ns_steps": 3},
        {"optimizer": "adafactor", "beta2_decay": -0.5, "update_clip": 2.0},
        {"schedule": "wsd", "warmup_steps": 60, "decay_steps": 40, "decay_shape": "linear", "min_lr_ratio": 0.0},
        {"schedule": "infinite", "warmup_steps": 10, "cooldown_steps": 60, "anneal_steps": 30},
        {"schedule": "infinite", "warmup_steps": 10, "cooldown_steps": 85},
        {"schedule": "infinite", "anneal_steps": 100},
        {"schedule": "constant", "use_cosine": False},
        {"schedule": "cosine", "use_cosine": True},
    ],
)
def test_what_can_be_is_resolved_once_and_for_all(values: dict[str, Any]) -> None:
    run = RunConfig.model_validate({"data": {"file_path": "x"}, "trainer": {"max_iters": 100, **values}}).resolved(100)
    assert run.resolved(100) == run
    assert {key: getattr(run.trainer, key) for key in values} == {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }


def test_the_short_form_is_the_same_run() -> None:
    flags = ["--data.file_path=x", "--trainer.max_iters=100"]
    long = from_flags([*flags, "--trainer.schedule=cosine"]).resolved(100)
    short = from_flags([*flags, "--trainer.use_cosine=True"]).resolved(100)
    both = from_flags([*flags, "--trainer.use_cosine=true", "--trainer.schedule=cosine"]).resolved(100)
    assert long == short == both
    assert long.trainer.use_cosine is True and long.trainer.schedule == "cosine"
    plain = from_flags(flags).resolved(100).trainer
    assert plain.use_cosine is False and plain.schedule == "constant"


def test_a_flag_replaces_what_the_file_has_filled_in(tmp_path: Path) -> None:
    written = {"trainer": {"max_iters": 100, "optimizer": "sgd", "schedule": "wsd"}, "data": {"file_path": "x"}}
    path = tmp_path / "config.json"
    path.write_text(RunConfig.model_validate(written).resolved(100).to_json())
    for flags, expected in (
        (["--trainer.use_cosine=true"], {"schedule": "cosine", "optimizer": "sgd", "momentum": 0.9}),
        (["--trainer.schedule=linear"], {"schedule": "linear", "decay_steps": None}),
        (["--trainer.optimizer=muon"], {"schedule": "wsd", "decay_steps": 10, "momentum": 0.95, "nesterov": True}),
        (["--trainer.optimizer=adamw"], {"momentum": None, "nesterov": None}),
        (["--trainer.max_iters=50"], {"decay_steps": 10}),
    ):
        got = from_flags([f"--config={path}", *flags]).resolved(100).trainer
        assert {key: getattr(got, key) for key in expected} == expected

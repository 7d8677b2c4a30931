"""What a configuration adds to a run: more logs, samples, kept weights, an early end, requests by file, warnings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablatrix.trainer import checkpoint
from ablatrix.trainer.callbacks.spikes import Spikes
from ablatrix.trainer.config import RunConfig, from_flags
from ablatrix.trainer.early_stopping import Improvement
from ablatrix.trainer.loop import Trainer
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.attempts import Attempt
from ablatrix.trainer.rundir.errors import ConfigError
from ablatrix.trainer.rundir.events import read_events
from tests.support.callbacks import at
from tests.support.overfitting import OVERFITTING, held_out
from tests.support.workspace import without_clock

CLOCKS = {*loss_csv.CLOCK_COLUMNS, "peak_memory_bytes"}


@pytest.fixture
def overfit(train: Callable[..., Path], write_jsonl: Callable[..., Path]) -> Callable[..., Path]:
    """`train` with a best evaluation in the middle."""
    settings = {"data__file_path": write_jsonl(OVERFITTING), "trainer__learning_rate": 0.03, "trainer__max_iters": 44}
    return lambda name="run", **more: train(name, **{**settings, **more})


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / run_files.SUMMARY).read_text())


def rows(run: Path) -> list[dict[str, str]]:
    head, *lines = without_clock(run)
    return [dict(zip(head, line, strict=True)) for line in lines]


def metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the values that tell of the clock and the machine."""
    records = [json.loads(line) for line in (run / run_files.METRICS).read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in CLOCKS} for record in records]


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] == name]


def test_metrics_say_what_loss_csv_says(train: Callable[..., Path]) -> None:
    run = train(callbacks__jsonl=True)
    assert [record["iter"] for record in metrics(run)] == [int(row["iter"]) for row in rows(run)]
    for record, row in zip(metrics(run), rows(run), strict=True):
        assert {k: "" if v is None else repr(v) for k, v in record.items()} == row
    first = json.loads((run / run_files.METRICS).read_text().splitlines()[0])
    assert first["peak_memory_bytes"] > 10e6


def test_metrics_of_a_run_that_gets_them_later_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = loss_csv.LossLog(tmp_path, 0)
    for step, loss in ((1, 5.0), (2, math.nan), (3, 4.0), (4, 3.0)):
        log.write({"iter": step, "loss": loss, "dt": 0.1})
    torn = '{"iter": 1, "loss": 9.0, "more": 7}\n{"iter": 4, "loss": 3.0}\n{"iter": 2, "los'
    (tmp_path / run_files.METRICS).write_text(torn)
    rows = loss_csv.LossLog(tmp_path, 3).rows()
    loss_csv.MetricsLog(tmp_path, rows).write({"iter": 4, "loss": 3.5})
    records = list(run_files.json_objects((tmp_path / run_files.METRICS).read_text()))
    assert [(r["iter"], r["loss"], r.get("more")) for r in records] == [
        (1, 5.0, 7), (2, None, None), (3, 4.0, None), (4, 3.5, None),
    ]  # fmt: skip


def test_samples_of_several_prompts(train: Callable[..., Path]) -> None:
    several = train("several", trainer__sample_interval=12, trainer__sample_prompt=["The", "It is"])
    one = train("one", trainer__sample_interval=12)
    text = (several / run_files.SAMPLES).read_text()
    assert re.findall(r"=== iter (\d+)", text) == ["0", "12", "24"], "before the first step, and after the last"
    assert text.startswith("=== iter 0\n--- 'The'\nThe") and "\n--- 'It is'\nIt is" in text
    alone = (one / run_files.SAMPLES).read_text().split("=== iter 12\n")[0].removeprefix("=== iter 0\n")
    assert f"--- 'The'\n{alone}--- 'It is'\n" in text, "a prompt's sample depends on the prompts beside it"
    assert without_clock(one) == without_clock(several)


def test_what_the_experiment_is_about_is_the_first_line(
    train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train(info__name="Gates", info__date="2026-01-31", info__hypothesis="they\n help", trainer__max_iters=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" INFO experiment: Gates (2026-01-31); hypothesis: they help")
    assert any(" INFO started at iter 0" in line for line in lines)
    with pytest.raises(ConfigError, match=r"info.date: 'soon' is not a date; write YYYY-MM-DD"):
        from_flags(["--info.date=soon"])


@pytest.mark.parametrize(
    ("text", "prompts"),
    [("The", ("The",)), ("['a', 'b']", ("a", "b")), ('("a",)', ("a",)), ("(see", ("(see",)), ("42", ("42",))],
)
def test_prompts_on_the_command_line(text: str, prompts: tuple[str, ...]) -> None:
    assert from_flags([f"--trainer.sample_prompt={text}"]).trainer.sample_prompt == prompts


class TestCheckpointsKept:
    def test_newest(self, train: Callable[..., Path]) -> None:
        run = train(trainer__save_total_limit=3)
        assert [path.name[-6:-3] for path in checkpoint.checkpoints(run)] == ["024", "020", "015"]

    def test_one_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"trainer.save_total_limit: 1 is too few; keep at least 2"):
            from_flags(["--trainer.save_total_limit=1"])

    def test_best(self, overfit: Callable[..., Path]) -> None:
        run = overfit(trainer__save_best=True)
        evaluated = {int(row["iter"]): float(row["val_loss"]) for row in rows(run) if row["val_loss"]}
        best = min(evaluated, key=lambda step: evaluated[step])
        assert 4 < best < 44
        assert (summary(run)["best_iter"], summary(run)["best_val_nll"]) == (best, evaluated[best])
        assert held_out(run, run_files.BEST) == pytest.approx(evaluated[best], abs=1e-6)
        assert held_out(run, run_files.MODEL) == pytest.approx(evaluated[44], abs=1e-6)

    def test_they_do_not_make_another_run(self) -> None:
        kept = from_flags(["--trainer.save_best=true", "--trainer.save_total_limit=5", "--callbacks.jsonl=true"])
        assert kept.fingerprint() == RunConfig().fingerprint()
        assert from_flags(["--info.hypothesis=better"]).fingerprint() == RunConfig().fingerprint()
        assert from_flags(["--trainer.early_stop_patience=3"]).fingerprint() != RunConfig().fingerprint()
        assert from_flags(["--callbacks.custom=a.b:C"]).fingerprint() != RunConfig().fingerprint()


class TestEarlyStop:
    SETTINGS = {"trainer__early_stop_patience": 2, "trainer__max_iters": 80}  # noqa: RUF012

    def test_ends_as_finished(self, overfit: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
        run = overfit(**self.SETTINGS)
        found = summary(run)
        evaluated = [(int(row["iter"]), float(row["val_loss"])) for row in rows(run) if row["val_loss"]]
        (end, last), *before = reversed(evaluated)
        assert found["stopped_early"] is True and found["diverged"] is False
        assert end == found["iters"] == found["best_iter"] + 8 < 80
        assert min(value for _, value in evaluated) == found["best_val_nll"] <= min(last, before[0][1])
        assert found["val_nll"] == last
        assert events(run, "finished") and checkpoint.checkpoints(run)[0].name == f"checkpoint-{end:08d}.pt"
        assert f"stopped early after iter {end}" in capsys.readouterr().out

    @pytest.mark.parametrize("cut", [4, 9, 13])
    def test_resumed_ends_at_the_same_step(self, cut: int, overfit: Callable[..., Path]) -> None:
        whole = overfit("whole", **self.SETTINGS, trainer__ckpt_interval=1, trainer__save_total_limit=99)
        run = overfit("cut", **self.SETTINGS, trainer__ckpt_interval=1, trainer__save_total_limit=99)
        assert summary(whole)["iters"] > cut
        overfit("cut", **self.SETTINGS, trainer__ckpt_interval=1, trainer__resume=run / f"checkpoint-{cut:08d}.pt")
        assert without_clock(run) == without_clock(whole)
        assert summary(run)["iters"] == summary(whole)["iters"]

    def test_needs_evaluations(self, train: Callable[..., Path]) -> None:
        with pytest.raises(ConfigError, match=r"trainer.early_stop_patience: no evaluations"):
            train(trainer__early_stop_patience=2, trainer__eval_interval=0)

    def test_small_gains_count_for_nothing(self) -> None:
        found = Improvement(patience=2, min_delta=0.1)
        for step, nll in enumerate((3.0, 2.95, 2.89)):
            found.note(step, nll)
        assert (found.num_bad_evals, found.reference, found.best) == (0, 2.89, 2.89)
        found.note(3, 2.80)
        assert not found.exhausted
        found.note(4, 2.795)
        assert found.exhausted and (found.best_iter, found.reference) == (4, 2.89)
        again = Improvement(2, 0.1)
        again.load(found.state())
        assert again == found


class TestRequests:
    def request(self, run: Path, step: int, name: str) -> Callable[[Trainer], None]:
        def callback(trainer: Trainer) -> None:
            if trainer.iter == step:
                (run / name).touch()

        return callback

    @pytest.fixture
    def asking(
        self, train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Path]:
        """A run whose folder gets a file at a step, while every step boundary is a second after the one before."""
        from ablatrix.trainer.callbacks import outputs, registry

        def asking(name: str, step: int, code: int) -> Path:
            attach = registry.attach

            def attached(trainer: Trainer, *rest: Any) -> Any:
                trainer.add_callback(at("on_batch_end", self.request(tmp_path / "asked", step, name), priority=200))
                return attach(trainer, *rest)

            clock = iter(range(10**6))
            with monkeypatch.context() as patched:
                patched.setattr(registry, "attach", attached)
                patched.setattr(outputs, "time", type("Clock", (), {"monotonic": lambda: float(next(clock))}))
                return train("asked", code)

        return asking

    def test_save_and_go_on(self, asking: Callable[..., Path], train: Callable[..., Path]) -> None:
        run = asking("save", 6, 0)
        steps = [event["iter"] for event in events(run, "checkpoint")]
        assert steps in ([5, 6, 10, 15, 20, 24], [5, 7, 10, 15, 20, 24])
        assert not (run / "save").exists()
        assert without_clock(run) == without_clock(train("whole"))

    def test_stop_and_continue(self, asking: Callable[..., Path], train: Callable[..., Path]) -> None:
        run = asking("stop", 6, run_files.EXIT_STOPPED)
        (stopped,) = events(run, "stopped")
        assert stopped["iter"] in (6, 7) and stopped["by"] == "the file stop"
        assert not (run / "stop").exists() and not (run / run_files.SUMMARY).exists()
        train("asked")
        assert without_clock(run) == without_clock(train("whole"))

    def test_left_over_for_a_run_that_starts_from_step_0(self, train: Callable[..., Path]) -> None:
        run = train()
        (run / "stop").touch()
        train(trainer__resume="none")
        assert summary(run)["iters"] == 24 and not (run / "stop").exists()


class TestSpikes:
    def run(self, tmp_path: Path, rows: list[dict[str, Any]], kept: int = 0) -> list[tuple[int, str]]:
        watch = Spikes(Attempt.take(tmp_path), rows[:kept])
        trainer = Trainer.__new__(Trainer)
        for row in rows[kept:]:
            trainer.iter, trainer.row = row["iter"], row
            watch.on_row(trainer)
        return [(event["iter"], event["what"]) for event in events(tmp_path, "spike")]

    def rows(self, **odd: tuple[int, float]) -> list[dict[str, Any]]:
        """30 rows as of a run that learns; odd: name=(row, value)."""
        rows = [{"iter": i, "loss": 5 - 0.05 * i + 0.02 * (i % 3), "grad_norm": 1 + 0.1 * (i % 4), "lr": 1e-3}
                for i in range(1, 31)]  # fmt: skip
        for name, (row, value) in odd.items():
            rows[row][name] = value
        return rows

    @pytest.mark.parametrize("kept", [0, 12])
    def test_jumps(self, tmp_path: Path, kept: int, caplog: pytest.LogCaptureFixture) -> None:
        found = self.run(tmp_path, self.rows(grad_norm=(14, 50.0), loss=(20, 11.0)), kept)
        assert found == [(15, "grad_norm"), (21, "loss")]
        assert "iter 15: grad_norm 50, recently 1.1 (lr 1.00e-03)" in caplog.text

    def test_said_once_while_it_lasts(self, tmp_path: Path) -> None:
        rows = self.rows()
        for row in rows[20:24]:
            row["grad_norm"] = 90.0
        rows[27]["grad_norm"] = math.nan
        assert self.run(tmp_path, rows) == [(21, "grad_norm")]

    def test_switched_off(self, tmp_path: Path, train: Callable[..., Path]) -> None:
        on = train("on", callbacks__watch_grad_norm=0.01, trainer__log_interval=1)
        off = train("off", callbacks__watch_grad_norm=0, callbacks__watch_loss=0, trainer__log_interval=1)
        assert events(on, "spike")[0]["iter"] == 9 and not events(off, "spike")

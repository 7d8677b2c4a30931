"""`python -m ablatrix.trainer` as users, jobs and clusters call it: processes, signals, files."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ablatrix.models.gpt import GPT
from ablatrix.trainer.config import load
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.events import read_events
from ablatrix.trainer.rundir.step_time import lower_quartile
from tests.support.forked_python import ForkedPython
from tests.support.waiting import PATIENCE, wait_for
from tests.support.workspace import without_clock

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
WAITS = """
import pathlib, time

class Own:
    def on_train_end(self, trainer): pass

if not pathlib.Path("waiting").exists():
    pathlib.Path("waiting").touch()
    time.sleep(3600)
"""


class Command:
    """`python -m ablatrix.trainer` on the shared corpus, in the test's own folder."""

    def __init__(self, folder: Path, corpus: Path, cache: Path, python: str) -> None:
        self.folder, self.python = folder, python
        self.flags = {
            "data.file_path": corpus,
            "data.tokenizer": "sample",
            "data.block_size": 16,
            "data.test_size": 4,
            "model.model_type": "gpt-nano",
            "model.n_layer": 1,
            "trainer.max_iters": 40,
            "trainer.batch_size": 2,
            "trainer.log_interval": 7,
            "trainer.eval_interval": 15,
            "trainer.eval_tokens": 500,
            "trainer.ckpt_interval": 8,
            "trainer.device": "cpu",
            "system.cache_dir": cache,
        }

    def line(self, work_dir: str = "run", **flags: Any) -> list[str]:
        merged = {**self.flags, "system.work_dir": work_dir, **{k.replace("__", "."): v for k, v in flags.items()}}
        return [self.python, "-m", "ablatrix.trainer", *(f"--{k}={v}" for k, v in merged.items() if v is not None)]

    def start(self, work_dir: str = "run", **flags: Any) -> subprocess.Popen[str]:
        out = subprocess.PIPE
        return subprocess.Popen(
            self.line(work_dir, **flags), stdout=out, stderr=out, text=True, cwd=self.folder, env=ENV
        )

    def run(self, work_dir: str = "run", code: int = 0, **flags: Any) -> subprocess.CompletedProcess[str]:
        with self.start(work_dir, **flags) as process:
            stdout, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, f"{stdout}\n{stderr}"
        assert "Traceback" not in stderr, stderr
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def events(self, work_dir: str = "run") -> list[str]:
        return [event["event"] for event in read_events(self.folder / work_dir)]


@pytest.fixture
def command(tmp_path: Path, corpus: Path, offline_cache: Path, forked_python: ForkedPython) -> Command:
    return Command(tmp_path, corpus, offline_cache, forked_python.python)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, offline_cache: Path, forked_python: ForkedPython
) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    Command(folder, corpus, offline_cache, forked_python.python).run(trainer__sample_interval=20)
    return folder / "run"


def rows(folder: Path) -> int:
    return len(loss_csv.parse_rows(run_files.read_text(folder / run_files.LOSS)))


class TestWholeRun:
    def test_summary(self, undisturbed: Path) -> None:
        summary = json.loads((undisturbed / run_files.SUMMARY).read_text())
        losses = without_clock(undisturbed)
        last = dict(zip(losses[0], losses[-1], strict=True))
        assert summary["iters"] == summary["max_iters"] == 40
        assert summary["tokens"] == 40 * 2 * 16 == int(last["tokens"])
        assert summary["val_nll"] == float(last["val_loss"])
        assert summary["final_loss"] == float(last["loss"])
        assert summary["initial_loss"] == float(dict(zip(losses[0], losses[1], strict=True))["loss"])
        assert summary["diverged"] is False
        assert summary["device"] == "cpu (1 threads)"
        assert 0 < summary["val_tokens"] <= 500
        assert summary["peak_memory_bytes"] > 50e6
        assert summary["fingerprint"] == load(undisturbed / run_files.CONFIG).fingerprint()
        assert sum(summary["skipped_documents"].values()) == 0

    def test_timing_is_where_when_and_how_fast(self, undisturbed: Path) -> None:
        timing = json.loads((undisturbed / run_files.SUMMARY).read_text())["timing"]
        started = next(e for e in read_events(undisturbed) if e["event"] == "started")
        assert (timing["host"], timing["started"]) == (started["host"], started["time"])
        assert timing["hardware"]
        rows = loss_csv.parse_rows((undisturbed / run_files.LOSS).read_text())
        steps, seconds = [int(row[0]) for row in rows], [float(row[-1]) for row in rows]
        assert timing["step_seconds"] == pytest.approx(lower_quartile(steps, seconds), rel=1e-3)
        assert (started["gpus"], started["processes"], started["threads"]) == ([], 1, 1)

    def test_rows(self, undisturbed: Path) -> None:
        steps = [int(row[0]) for row in without_clock(undisturbed)[1:]]
        assert steps == [1, 7, 14, 15, 21, 28, 30, 35, 40]

    def test_model_is_rebuilt_from_the_folder_alone(self, undisturbed: Path) -> None:
        config = load(undisturbed / run_files.CONFIG)
        model = GPT.from_state(config.model, torch.load(undisturbed / run_files.MODEL, weights_only=True))
        summary = json.loads((undisturbed / run_files.SUMMARY).read_text())
        assert sum(p.numel() for p in model.parameters()) == summary["parameters"]

    def test_events_and_samples(self, undisturbed: Path) -> None:
        events = read_events(undisturbed)
        assert [e["event"] for e in events] == ["started", *["checkpoint"] * 5, "finished"]
        assert [e["iter"] for e in events] == [0, 8, 16, 24, 32, 40, 40]
        samples = (undisturbed / run_files.SAMPLES).read_text()
        assert samples.startswith("=== iter 0\nThe")
        assert "\n=== iter 20\nThe" in samples and "\n=== iter 40\nThe" in samples

    def test_args_can_be_pasted(self, command: Command) -> None:
        odd = "a folder with 'quotes' and $HOME"
        command.run(odd)
        line = (command.folder / odd / run_files.ARGS).read_text()
        assert shlex.split(line) == command.line(odd)
        again = subprocess.run(
            ["sh", "-c", line], cwd=command.folder, env=ENV, capture_output=True, text=True, check=True
        )
        assert "already finished" in again.stdout

    def test_config_repeats_the_run(self, command: Command, undisturbed: Path) -> None:
        line = [sys.executable, "-m", "ablatrix.trainer", "--config", str(undisturbed / run_files.CONFIG)]
        subprocess.run([*line, "--system.work_dir=again"], cwd=command.folder, env=ENV, check=True, capture_output=True)
        assert without_clock(command.folder / "again") == without_clock(undisturbed)
        assert (command.folder / "again" / run_files.SAMPLES).read_bytes() == (
            undisturbed / run_files.SAMPLES
        ).read_bytes()

    def test_finished_run_is_left_alone(self, command: Command) -> None:
        command.run()
        folder = command.folder / "run"
        before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir() if p.is_file()}
        assert "already finished" in command.run().stdout
        assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir() if p.is_file()} == before

    def test_resume_none_starts_from_step_0(self, command: Command, undisturbed: Path) -> None:
        command.run(trainer__sample_interval=20)
        command.run(trainer__sample_interval=20, trainer__resume="none")
        assert without_clock(command.folder / "run") == without_clock(undisturbed)
        assert (command.folder / "run" / run_files.SAMPLES).read_bytes() == (
            undisturbed / run_files.SAMPLES
        ).read_bytes()
        assert command.events().count("started") == 2

    def test_resume_from_a_file(self, command: Command, undisturbed: Path) -> None:
        source = undisturbed / "checkpoint-00000032.pt"
        command.run(trainer__sample_interval=20, trainer__resume=source)
        expected = without_clock(undisturbed)
        assert without_clock(command.folder / "run") == expected, "the rows before come from the checkpoint's run"

    def test_sampling_changes_nothing(self, command: Command, undisturbed: Path) -> None:
        command.run()
        assert without_clock(command.folder / "run") == without_clock(undisturbed)
        assert not (command.folder / "run" / run_files.SAMPLES).exists()

    def test_divergence_is_a_result(self, command: Command) -> None:
        done = command.run(trainer__learning_rate=1e30, trainer__grad_norm_clip=0)
        summary = json.loads((command.folder / "run" / run_files.SUMMARY).read_text())
        assert summary["diverged"] is True and summary["val_nll"] is None and summary["final_loss"] is None
        assert summary["iters"] < 40 and without_clock(command.folder / "run")[-1][1] == "nan"
        assert "diverged after iter" in done.stdout
        assert not (command.folder / "run" / run_files.MODEL).exists()


class TestStops:
    def test_signal_leaves_a_checkpoint(self, command: Command, undisturbed: Path) -> None:
        with command.start(trainer__sample_interval=20) as process:
            wait_for(lambda: rows(command.folder / "run") >= 2, process)
            process.send_signal(signal.SIGUSR2)
            _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == run_files.EXIT_STOPPED, stderr
        assert stderr == ""
        events = read_events(command.folder / "run")
        assert [e["event"] for e in events[-3:]] == ["signal", "checkpoint", "stopped"]
        assert events[-3]["signal"] == "SIGUSR2"
        assert len({e["iter"] for e in events[-3:]}) == 1
        command.run(trainer__sample_interval=20)
        assert without_clock(command.folder / "run") == without_clock(undisturbed)
        assert (command.folder / "run" / run_files.SAMPLES).read_bytes() == (
            undisturbed / run_files.SAMPLES
        ).read_bytes()
        assert command.events()[-1] == "finished"

    @pytest.mark.parametrize("seconds", [0.1, 0.5])
    def test_signal_while_modules_load(self, command: Command, seconds: float) -> None:
        """There is nothing to save, and nothing that fails."""
        forked, command.python = command.python, sys.executable  # which takes longer than this to import torch
        with command.start() as process:
            time.sleep(seconds)
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=PATIENCE)
        # or the interpreter itself was still starting
        assert process.returncode in (run_files.EXIT_STOPPED, -signal.SIGTERM)
        assert "Traceback" not in stderr
        command.python = forked
        command.run()

    def test_signal_before_training(self, command: Command) -> None:
        """Reading what a run needs may take long, and is interrupted at once."""
        (command.folder / "waits.py").write_text(WAITS)
        with command.start(callbacks__custom="waits:Own") as process:
            wait_for((command.folder / "waiting").exists, process)
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == run_files.EXIT_STOPPED and "stopped by SIGTERM before training began" in stderr
        assert "Traceback" not in stderr
        command.run(callbacks__custom="waits:Own")


class TestMistakes:
    """One clear sentence, exit code 2, nothing created."""

    def refused(self, command: Command, work_dir: str = "run", **flags: Any) -> str:
        done = command.run(work_dir, code=2, **flags)
        assert done.stdout == "" and all(line.startswith("error: ") for line in done.stderr.splitlines())
        assert not (command.folder / work_dir).exists()
        return done.stderr

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ({"trainer__warmpu_steps": 3}, "unknown flag (did you mean trainer.warmup_steps?)"),
            ({"model__n_embd": 50}, "n_embd (50) is not divisible by n_head (3)"),
            ({"data__file_path": "missing.jsonl"}, "missing.jsonl"),
            ({"data__tokenizer": "nobody/nothing"}, " warm-cache"),
            ({"data__block_size": 100000}, "set data.block_size to at most"),
            ({"trainer__device": "cuda:99"}, "cuda:99 is not available"),
            ({"trainer__resume": "missing.pt"}, "cannot read missing.pt: "),
        ],
        ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
    )
    def test_flags(self, command: Command, flags: dict[str, Any], message: str) -> None:
        assert message in self.refused(command, **flags)

    def test_unwritable_output(self, command: Command) -> None:
        (command.folder / "file").write_text("")
        assert "cannot write to file/run: Not a directory" in self.refused(command, work_dir="file/run")

    def test_folder_of_another_configuration(self, command: Command) -> None:
        command.run()
        before = {p.name: p.read_bytes() for p in (command.folder / "run").iterdir() if p.is_file()}
        done = command.run(code=2, trainer__learning_rate=1e-2)
        assert (
            "run contains a run with a different configuration (trainer.learning_rate: 0.0003 there, 0.01 here)"
            in done.stderr
        )
        assert "choose another --system.work_dir" in done.stderr
        assert {p.name: p.read_bytes() for p in (command.folder / "run").iterdir() if p.is_file()} == before

    def test_a_prepared_folder_hears_of_the_failure(self, command: Command) -> None:
        command.run()
        folder = command.folder / "run"
        (folder / run_files.SUMMARY).unlink()
        line = [command.python, "-m", "ablatrix.trainer", "--config", "run/config.json"]
        config = json.loads((folder / run_files.CONFIG).read_text())
        config["data"]["file_path"] = "gone.jsonl"
        (folder / run_files.CONFIG).write_text(json.dumps(config))
        done = subprocess.run(line, cwd=command.folder, env=ENV, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        last = read_events(folder)[-1]
        assert last["event"] == "failed" and "gone.jsonl" in last["reason"]


def test_help_lists_every_flag_without_torch() -> None:
    code = "import sys; from ablatrix.trainer.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=True, cwd=ROOT)
    from ablatrix.trainer.config import keys

    text = " ".join(done.stdout.split())
    for key, field in keys():
        assert f" --{key} VALUE {field.description}" in text
    assert "--config FILE" in text


def test_offline_is_set_before_anything_is_imported() -> None:
    code = (
        "import os, sys\n"
        "import ablatrix.trainer.cli as m\n"
        "early = {'torch', 'transformers', 'huggingface_hub', 'tokenizers', 'ablatrix.trainer.config'}\n"
        "early &= set(sys.modules)\n"
        "m.main(['--help'])\n"
        "print(early, os.environ['HF_HUB_OFFLINE'], os.environ['TRANSFORMERS_OFFLINE'])\n"
    )
    env = {k: v for k, v in ENV.items() if not k.endswith("_OFFLINE")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "set() 1 1"

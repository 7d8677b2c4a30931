"""TensorBoard, W&B and callbacks of the user's own: what they get, and what becomes of a run in which they break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablatrix.trainer import checkpoint
from ablatrix.trainer.config import from_flags
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import ConfigError, RunError, UserError
from ablatrix.trainer.rundir.events import read_events
from ablatrix.trainer.rundir.program import pip_install
from tests.support.workspace import without_clock

ROOT = Path(__file__).resolve().parents[2]
Train = Callable[..., Path]

# Stands in for a package that the tests' environment has not, and writes down how it is called
WANDB = """
import json, os
CALLS = os.environ["WANDB_CALLS"]

def note(*call):
    with open(CALLS, "a") as file:
        file.write(json.dumps(call) + "\\n")

class Run:
    def log(self, values, step):
        {log}
        note("log", step, values["loss"])
    def finish(self, code):
        {finish}
        note("finish", code)

def init(**words):
    {init}
    note("init", os.environ["WANDB_MODE"], words["id"], words["name"], words["config"]["trainer"]["max_iters"])
    os.makedirs(os.path.join(words["dir"], "wandb", "latest-run"), exist_ok=True)
    return Run()
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """modules(name, source): a module that can be imported in this test and is forgotten after it."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("WANDB_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_MODE")

    def write(name: str, source: str) -> None:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
        (folder / f"{name}.py").write_text(source)

    return write


def wandb_source(**broken: str) -> str:
    return WANDB.format(**{"log": "pass", "finish": "pass", "init": "pass", **broken})


def calls(tmp_path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


def warnings(text: str) -> list[str]:
    return [line.partition(" WARNING ")[2] for line in text.splitlines() if " WARNING callbacks." in line]


class TestWandB:
    def test_gets_every_row(
        self, train: Train, modules: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        modules("wandb", wandb_source())
        run = train(callbacks__wandb=True)
        first, *logged, last = calls(tmp_path)
        assert first == ["init", "offline", (run / "wandb" / "id").read_text().strip(), "run", 24]
        rows = without_clock(run)[1:]
        assert [(call[1], repr(call[2])) for call in logged] == [(int(row[0]), row[1]) for row in rows]
        assert last == ["finish", 0]
        assert f"wandb sync {run}/wandb/latest-run" in capsys.readouterr().out
        assert without_clock(run) == without_clock(train("plain"))

    def test_resumed_offline_has_all_rows_in_its_newest_folder(
        self, train: Train, modules: Any, tmp_path: Path
    ) -> None:
        modules("wandb", wandb_source())
        run = train(callbacks__wandb=True)
        (tmp_path / "calls").unlink()
        known = (run / "wandb" / "id").read_text()
        train(callbacks__wandb=True, trainer__resume=run / "checkpoint-00000020.pt")
        (_, _, name, *_), *logged, _ = calls(tmp_path)
        assert name == known.strip()
        assert [call[1] for call in logged] == [int(row[0]) for row in without_clock(run)[1:]]

    @pytest.mark.parametrize(
        ("where", "line", "words"),
        [
            ("init", "raise RuntimeError('no space on device')", "RuntimeError: no space on device"),
            ("log", "raise ValueError('bad step\\nand more')", "ValueError: bad step;"),
            ("log", "raise SystemExit(3)", "SystemExit: 3"),
            ("finish", "raise OSError(28, 'No space left')", "OSError: [Errno 28] No space left"),
        ],
    )
    def test_breaks(
        self, train: Train, modules: Any, capsys: pytest.CaptureFixture[str], where: str, line: str, words: str
    ) -> None:
        modules("wandb", wandb_source(**{where: line}))
        run = train(callbacks__wandb=True)
        (shown,) = warnings(capsys.readouterr().err)
        assert words in shown and shown.endswith("training continues without it")
        assert (run / run_files.SUMMARY).exists() and read_events(run)[-1]["event"] == "finished"

    def test_signal_handlers_are_kept(self, train: Train, modules: Any) -> None:
        import signal

        before = signal.getsignal(signal.SIGTERM)
        modules("wandb", wandb_source(init="import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"))
        train(callbacks__wandb=True)
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_neither_installed(corpus: Path, offline_cache: Path, tmp_path: Path) -> None:
    """As a user meets it: two warnings, and the run is done."""
    for name in ("wandb", "tensorboard"):
        missing = f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')"
        (tmp_path / f"{name}.py").write_text(missing)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
    flags = ["--callbacks.wandb=true", "--callbacks.tensorboard=true", f"--data.file_path={corpus}"]
    flags += ["--data.tokenizer=sample", f"--system.cache_dir={offline_cache}", "--trainer.max_iters=4"]
    flags += ["--model.model_type=gpt-nano", "--model.n_layer=1", "--data.block_size=8", "--trainer.eval_tokens=64"]
    command = [sys.executable, "-m", "ablatrix.trainer", *flags]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert warnings(done.stderr) == [
        f"callbacks.{name}: not installed ({pip_install(name)}); training continues without it"
        for name in ("tensorboard", "wandb")
    ]
    assert "Traceback" not in done.stderr


class TestTensorBoard:
    def test_what_its_writer_receives(self, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a writer that only remembers: the package is not among the requirements."""
        made: list[Any] = []

        class Writer:
            def __init__(self, folder: str, purge_step: int | None) -> None:
                self.purge_step, self.steps, self.flushed = purge_step, [], 0
                Path(folder).mkdir(exist_ok=True)
                (Path(folder) / f"events.out.tfevents.{len(made)}").touch()
                made.append(self)

            def add_scalar(self, name: str, value: float, step: int) -> None:
                if name == "loss":
                    self.steps.append(step)

            def add_text(self, name: str, text: str) -> None:
                pass

            def flush(self) -> None:
                self.flushed = len(self.steps)

            def close(self) -> None:
                self.flush()

        module = type(sys)("torch.utils.tensorboard")
        module.SummaryWriter = Writer  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
        run = train()
        train(callbacks__tensorboard=True, trainer__resume=run / "checkpoint-00000020.pt")
        train(callbacks__tensorboard=True, trainer__resume=run / "checkpoint-00000020.pt")
        late, again = made
        steps = [int(row[0]) for row in without_clock(run)[1:]]
        assert (late.purge_step, late.steps) == (None, steps), "rows from before it was switched on are missing"
        assert (again.purge_step, again.steps) == (21, [step for step in steps if step > 20])
        assert again.flushed == len(again.steps)


OWN = """
class Recorder:
    def __init__(self):
        self.seen = []
    def on_train_start(self, trainer):
        self.seen.append("start")
    def on_batch_end(self, trainer):
        self.seen.append(trainer.iter)
        {batch}
    def on_row(self, trainer):
        self.seen.append(("row", trainer.row["iter"]))
    def on_checkpoint(self, trainer):
        self.seen.append("checkpoint")
    def on_train_end(self, trainer):
        print("SEEN", self.seen)

class Typo:
    def on_batch(self, trainer): pass

class Nothing:
    def start(self): pass

class Asks:
    def __init__(self, argument): pass
    def on_row(self, trainer): pass

def function(trainer): pass
"""


class TestOwn:
    def test_called_at_every_event(self, train: Train, modules: Any, capsys: pytest.CaptureFixture[str]) -> None:
        modules("own_callbacks", OWN.format(batch="pass"))
        run = train(callbacks__custom="own_callbacks:Recorder", trainer__max_iters=4)
        expected = ["start", 1, ("row", 1), 2, 3, ("row", 3), 4, ("row", 4), "checkpoint"]
        assert f"SEEN {expected}" in capsys.readouterr().out
        assert without_clock(run) == without_clock(train("plain", trainer__max_iters=4))

    def test_raises(self, train: Train, modules: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        modules("own_callbacks", OWN.format(batch="if trainer.iter == 12: 1 / 0"))
        with pytest.raises(RunError, match="own_callbacks:Recorder: on_batch_end raised ZeroDivisionError: division"):
            train(callbacks__custom="own_callbacks:Recorder")
        last = read_events(tmp_path / "run")[-1]
        assert last["event"] == "failed" and "callbacks.custom: own_callbacks:Recorder" in last["reason"]
        assert "if trainer.iter == 12: 1 / 0" in capsys.readouterr().err, "the line is not shown"
        assert checkpoint.checkpoints(tmp_path / "run")[0].name == "checkpoint-00000010.pt"

    def test_stops_the_run(self, train: Train, modules: Any, capsys: pytest.CaptureFixture[str]) -> None:
        modules("own_callbacks", OWN.format(batch="trainer.stop_requested = trainer.iter == 7"))
        run = train(code=run_files.EXIT_STOPPED, callbacks__custom="own_callbacks:Recorder")
        last = read_events(run)[-1]
        assert (last["event"], last["iter"], last["requeue"]) == ("stopped", 7, False)
        assert "stopped by the callback own_callbacks:Recorder after iter 7" in capsys.readouterr().out
        train(callbacks__custom="own_callbacks:Recorder")
        assert without_clock(run) == without_clock(train("plain"))

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            (
                "no_such_module:A",
                "there is no module no_such_module; put its folder on PYTHONPATH, or start in the folder",
            ),
            ("broken_callbacks:A", "import failed: NameError: name 'undefined' is not defined$"),
            ("own_callbacks:Recoder", r"module own_callbacks \(.*\) has no Recoder \(did you mean Recorder\?\)"),
            ("own_callbacks:function", "not a class"),
            ("own_callbacks:Typo", r"on_batch is not an event \(did you mean on_batch_end\?\); events: on_train_start"),
            ("own_callbacks:Nothing", "none of the methods on_train_start"),
            ("own_callbacks:Asks", "no instance without arguments: TypeError"),
        ],
    )
    def test_mistakes_leave_nothing_behind(
        self, train: Train, modules: Any, tmp_path: Path, name: str, words: str
    ) -> None:
        modules("own_callbacks", OWN.format(batch="pass"))
        modules("broken_callbacks", "undefined")
        with pytest.raises(UserError, match=f"^callbacks.custom: {name}: {words}"):
            train(callbacks__custom=name)
        assert not (tmp_path / "run").exists()

    def test_not_a_name(self) -> None:
        with pytest.raises(ConfigError, match=r"callbacks.custom: 'my module' is not a class reference; write my"):
            from_flags(["--callbacks.custom=my module"])

    def test_in_the_working_folder_of_a_job(self, corpus: Path, offline_cache: Path, tmp_path: Path) -> None:
        """Jobs run with `-P`: the working folder is looked at last."""
        (tmp_path / "mine.py").write_text(OWN.format(batch="pass"))
        (tmp_path / "trainer.py").write_text("raise RuntimeError('not this one')")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        flags = ["--callbacks.custom=['mine:Recorder']", f"--data.file_path={corpus}", "--trainer.eval_tokens=64"]
        flags += ["--data.tokenizer=sample", f"--system.cache_dir={offline_cache}", "--trainer.max_iters=2"]
        flags += ["--model.model_type=gpt-nano", "--model.n_layer=1", "--data.block_size=8"]
        command = [sys.executable, "-P", "-m", "ablatrix.trainer", *flags]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "SEEN ['start', 1" in done.stdout, done.stderr

"""`doctor`: each check names what it finds, and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ablatrix.models.config import GPTConfig
from ablatrix.models.huggingface import describe_model
from ablatrix.orchestrator.cli import app, main
from ablatrix.orchestrator.store import shared_fs
from ablatrix.orchestrator.verbs import doctor
from ablatrix.trainer.data.manifest import FileFacts, WeightsEntry, add_entry
from tests.support.shell_stubs import program


@pytest.mark.slow
def test_a_machine_that_is_ready(offline_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATRIX_CACHE", str(offline_cache))
    result = CliRunner().invoke(app, ["doctor", "--json", "--output", str(tmp_path / "out")])
    findings = {finding["check"]: finding for finding in json.loads(result.stdout)}
    assert list(findings) == ["Python", "PyTorch", "Slurm", "offline cache", "disk", "clock"]
    assert result.exit_code == 0 and findings["PyTorch"]["state"] != "fault"
    assert "sample" in findings["offline cache"]["found"]
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_not_whole(offline_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATRIX_CACHE", str(tmp_path / "empty"))
    assert doctor._check_cache().state == doctor.WARNING
    cache = tmp_path / "cache"
    (cache / "tokenizers" / "sample").mkdir(parents=True)
    (cache / "manifest.json").write_bytes((offline_cache / "manifest.json").read_bytes())
    monkeypatch.setenv("ABLATRIX_CACHE", str(cache))
    finding = doctor._check_cache()
    assert finding.state == doctor.FAULT and "is missing or incomplete: run `" in finding.found


def test_weights_that_are_not_whole(offline_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(offline_cache / "tokenizers", cache / "tokenizers")
    (cache / "manifest.json").write_bytes((offline_cache / "manifest.json").read_bytes())
    folder = cache / "models" / "gpt2"
    folder.mkdir(parents=True)
    model = GPTConfig(model_type="gpt-nano").resolved(4096, 8)
    texts = {"config.json": json.dumps(describe_model(model)), "model.safetensors": "x" * 100}
    for name, text in texts.items():
        (folder / name).write_text(text)
    files = {name: FileFacts(size=len(text), sha256="") for name, text in texts.items()}
    add_entry(cache, "gpt2", WeightsEntry(source="openai-community/gpt2", files=files))
    monkeypatch.setenv("ABLATRIX_CACHE", str(cache))
    assert doctor._check_cache().found.endswith("sample; weights of gpt2")
    (folder / "model.safetensors").write_text("x" * 99)
    finding = doctor._check_cache()
    assert finding.state == doctor.FAULT and "warm-cache --weights gpt2" in finding.found


@pytest.mark.parametrize(
    ("answer", "state", "found"),
    [
        (
            "echo 'SLURM_VERSION = 22.05.8'; echo 'ClusterName = hpc'; echo 'MaxArraySize = 1001'",
            doctor.OK,
            "22.05.8 on hpc, no accounting, arrays of 1001",
        ),
        (
            "[ $2 = hostnames ] || { echo 'Unable to contact slurm controller' >&2; exit 1; }",
            doctor.FAULT,
            "Unable to contact",
        ),
    ],
)
def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, state: str, found: str) -> None:
    program(tmp_path / "bin" / "sbatch", "#!/bin/sh\nexit 0\n")
    program(tmp_path / "bin" / "scontrol", f"#!/bin/sh\n{answer}\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    finding = doctor._check_slurm()
    assert finding.state == state and found in finding.found


@pytest.mark.slow
def test_a_gpu_that_torch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin" / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    finding = doctor._check_torch()
    assert finding.state == doctor.WARNING and "make TORCH=cuda" in finding.advice


def test_a_clock_that_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_fs.time, "time", lambda: tmp_path.stat().st_mtime + 3600)
    finding = doctor._check_clock(tmp_path)
    assert finding.state == doctor.WARNING and finding.found.endswith("s off the file server's")


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout.split() == ["ablatrix", "0.1.0"]


@pytest.mark.parametrize("module", ["ablatrix", "ablatrix.orchestrator"])
def test_completion_is_for_the_installed_command(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Typer takes the name from the command line, here `python -m ablatrix`, which no shell completes."""
    monkeypatch.setattr("sys.argv", [f"{module}/__main__.py", "--show-completion", "bash"])
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # whatever shell runs the tests
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "_ABLATRIX_COMPLETE=complete_bash" in capsys.readouterr().out

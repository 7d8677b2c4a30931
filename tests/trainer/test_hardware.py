"""Names of processors, and which GPUs a process may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablatrix.trainer.rundir import hardware


def test_processors_have_the_names_that_the_system_gives(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel\t\t: 143\nmodel name\t: Xeon(R) 6: @ 2 GHz\n\nmodel name\t: other\n")
    assert hardware.processor(info) == "Xeon(R) 6: @ 2 GHz"
    assert hardware.processor(tmp_path / "missing")  # the machine's own word
    for bus, model in (
        ("0000:17:00.0", "NVIDIA H100"),
        ("0000:18:00.0", "NVIDIA H100"),
        ("0000:19:00.0", "NVIDIA A30"),
    ):
        (tmp_path / "gpus" / bus).mkdir(parents=True)
        (tmp_path / "gpus" / bus / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 30\n")
    assert hardware.gpu_models(tmp_path / "gpus") == ["NVIDIA A30", "NVIDIA H100"]
    assert hardware.visible_gpus({}, tmp_path / "gpus") == ["0000:17:00.0", "0000:18:00.0", "0000:19:00.0"]


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_GPUS": "3"}, ["3"]),  # confined: every job sees its own as 0
        ({"SLURM_STEP_GPUS": "2,3", "SLURM_JOB_GPUS": "0,1,2,3"}, ["2", "3"]),
        ({"CUDA_VISIBLE_DEVICES": "1, GPU-8f2a"}, ["1", "GPU-8f2a"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        ({}, []),
    ],
)
def test_the_gpus_of_a_job_have_slurms_numbers(environ: dict[str, str], gpus: list[str], tmp_path: Path) -> None:
    assert hardware.visible_gpus(environ, tmp_path / "gpus") == gpus

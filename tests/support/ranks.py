"""The processes of one distributed run, started as by a launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.store.code_snapshot import code_root
from tests.support.waiting import PATIENCE


def ranks(
    command: list[str], count: int = 2, python: str = sys.executable, **options: Any
) -> list[subprocess.Popen[str]]:
    """Start the processes of one run as a launcher would."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = []
    for rank in range(count):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, "PYTHONPATH": str(code_root()), "OMP_NUM_THREADS": "1"}
        environment |= {name: str(value) for name, value in place.items()}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen([python, *command], env=environment, **pipes, **options))
    return started


def ended(processes: list[subprocess.Popen[str]], codes: list[int]) -> list[str]:
    """Return what each process printed; fail unless their exit codes are `codes`."""
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == codes, "\n".join(outputs)
    return outputs


def flags(corpus: Path, cache: Path, work_dir: Path, **more: Any) -> list[str]:
    values = {
        "data.file_path": corpus, "data.tokenizer": "sample", "data.block_size": 16, "system.cache_dir": cache,
        "model.model_type": "gpt-nano", "model.n_layer": 2, "trainer.batch_size": 4, "trainer.max_iters": 60,
        "trainer.log_interval": 1, "trainer.ckpt_interval": 20, "trainer.eval_tokens": 500, "trainer.device": "cpu",
        "trainer.strategy": "ddp", "system.work_dir": work_dir, **more,
    }  # fmt: skip
    return ["-m", "ablatrix.trainer", *(f"--{key}={value}" for key, value in values.items())]

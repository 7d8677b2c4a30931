"""Ctrl-C once stops after a checkpoint; twice it ends the process at once, whatever it is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import time
from ablatrix.trainer.signals import StopSignals
signals = StopSignals()
signals.install()
signals.training = True
print("ready", flush=True)
while True:  # a step that takes long, and does not look at what has been received
    time.sleep(60)
"""


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", CODE], cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout and process.stderr
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert "press Ctrl-C again to end the run at once" in process.stderr.readline()
            assert process.poll() is None, "the first one only asks it to stop"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=PATIENCE) == -signal.SIGINT
        finally:
            process.kill()

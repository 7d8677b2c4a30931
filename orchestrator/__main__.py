"""`python -m orchestrator VERB`, and the command `ablatrix VERB`."""

import os
import signal
import sys


def _leave(number: int, frame: object) -> None:
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


def main() -> None:
    """Run a verb with Ablatrix's own packages, whatever the working folder and PYTHONPATH hold."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)  # until the verbs say more
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from trainer.program import prefer_own_packages

    del sys.path[0]
    prefer_own_packages()
    from orchestrator.cli import main as run_verb

    run_verb()


if __name__ == "__main__":
    main()

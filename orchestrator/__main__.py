"""`python -m orchestrator VERB`, and the command `ablatrix VERB`."""

import os
import signal


def _leave(number: int, frame: object) -> None:
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


def main() -> None:
    """Run a verb, whatever modules the working folder contains."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)  # until a verb installs its own handler
    from ablatrix.trainer.rundir.program import search_working_folder_last

    search_working_folder_last()
    from ablatrix.orchestrator.cli import main as run_verb

    run_verb()


if __name__ == "__main__":
    main()

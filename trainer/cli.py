"""The command line of one training run. Flags look like --section.name=value; --help lists them all."""

from __future__ import annotations

import os
import sys
from itertools import pairwise


def main(argv: list[str] | None = None) -> int:
    """Train as configured by the flags; return the exit code: 0 done, 75 stopped, 2 a user's mistake, 1 a failure."""
    # Hugging Face's libraries read these variables on import; compute nodes have no network
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    from ablatrix.trainer.config.flags import from_flags, make_parser
    from ablatrix.trainer.device import prepare
    from ablatrix.trainer.rundir import console
    from ablatrix.trainer.rundir.errors import AblatrixError
    from ablatrix.trainer.rundir.run_files import EXIT_STOPPED
    from ablatrix.trainer.signals import Interrupted, StopSignals

    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        after = [word for before, word in pairwise(argv) if before in ("--help", "-h")]
        print(make_parser(*after[:1]).format_help(), end="")
        return 0
    signals = StopSignals()
    try:
        signals.install()
        config = from_flags(argv)
        prepare()
        from ablatrix.trainer.run import execute

        signals.raise_from_now_on()
        code = execute(config, argv, signals)
        signals.ignore()
        return code
    except Interrupted:
        console.complain(f"stopped by {signals.name} before training began; start again to continue")
        return EXIT_STOPPED
    except AblatrixError as error:
        for line in error.lines:
            console.complain(f"error: {line}")
        return error.exit_code
    finally:
        console.flush_or_drop()


def leave(code: int) -> None:
    """Exit, immediately if several processes are connected: threads of the connections may abort a normal exit."""
    if "ablatrix.trainer.distributed.process_group" in sys.modules:
        os._exit(code)
    sys.exit(code)

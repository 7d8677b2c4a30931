"""One target in this process, by atheris (libFuzzer): `python -m tests.fuzz.one NAME CORPUS [libFuzzer's options]`."""

from __future__ import annotations

import sys

import atheris

from tests.fuzz import MEGABYTES, SECONDS_PER_INPUT


def main() -> None:
    name, corpus, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["orchestrator", "trainer", "yaml"]):
        from tests.fuzz import targets

    target = targets.TARGETS[name]
    limits = [f"-timeout={SECONDS_PER_INPUT}", f"-rss_limit_mb={MEGABYTES}", f"-max_len={target.longest}"]
    atheris.Setup([sys.argv[0], corpus, *limits, *options], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""`python -m ablatrix VERB`, the same as the command `ablatrix VERB`."""

from ablatrix.orchestrator.__main__ import main

if __name__ == "__main__":
    main()

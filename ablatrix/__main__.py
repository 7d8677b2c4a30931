"""`python -m ablatrix VERB`: same as the command `ablatrix VERB`."""

from ablatrix.orchestrator.__main__ import main

if __name__ == "__main__":
    main()

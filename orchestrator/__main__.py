"""python -m orchestrator VERB"""

from orchestrator.cli import main

if __name__ == "__main__":
    main()

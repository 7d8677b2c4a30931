"""The state of each run, why a run ended, and the cost of a study."""

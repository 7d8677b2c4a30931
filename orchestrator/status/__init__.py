"""The state of each run, why a run ended, and what a study costs."""

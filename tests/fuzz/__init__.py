"""Coverage-guided fuzzing of everything that reads text: `python -m tests.fuzz --seconds 30`, or `make fuzz`.

A target is a function over bytes (targets.py). Errors of ours (AblatrixError) are answers; whatever else comes out of
it is a crash, as are more than SECONDS_PER_INPUT seconds or MEGABYTES of memory for one input.
"""

SECONDS_PER_INPUT = 20
MEGABYTES = 1500

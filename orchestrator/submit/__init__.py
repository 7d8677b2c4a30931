"""From an experiment to queued jobs: checks, claims, queueing; and taking runs back."""

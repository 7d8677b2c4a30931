"""From an experiment to queued jobs: preflight checks, selection, claims, queueing and waves."""

"""Studies on disk: the study's folder, the code snapshot, submission attempts, logs."""

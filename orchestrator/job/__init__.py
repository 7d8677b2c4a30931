"""What runs on the compute node: the job's task, and runs of a user's command. Does not import torch."""

"""What runs on the compute node: the job's task, and runs that are a user's command. Free of torch."""

"""The run folder: the contract between trainer and orchestrator. Standard library only."""

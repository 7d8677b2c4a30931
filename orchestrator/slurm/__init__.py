"""Everything that talks to Slurm: its commands, the launchers, site limits."""

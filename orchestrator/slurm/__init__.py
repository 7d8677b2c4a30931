"""Everything that talks to Slurm: its commands, the launchers, the limits of a site."""

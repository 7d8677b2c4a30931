"""The Slurm cluster of the study at hand, which Slurm's commands are asked about."""

_name = ""


def select(name: str) -> None:
    """Have Slurm's commands query this cluster from now on; '' for the one that this machine belongs to.

    Jobs that were submitted with `clusters: beta` are only found there, whatever SLURM_CLUSTERS says today.
    """
    global _name
    _name = name


def selected() -> str:
    """Return the name given to `select`."""
    return _name

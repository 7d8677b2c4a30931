"""The Slurm cluster of the current study, which Slurm's commands query."""

_name = ""


def select(name: str) -> None:
    """Have Slurm's commands query this cluster from now on; '' for the one that this machine belongs to.

    Jobs submitted with `clusters: beta` are only found there, whatever SLURM_CLUSTERS says now.
    """
    global _name
    _name = name


def selected() -> str:
    """Return the name given to `select`."""
    return _name

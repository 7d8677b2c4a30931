"""The allow-list of exported variables in other words than the code's."""

from fnmatch import fnmatchcase

from ablatrix.orchestrator.study import exported_env


def allowed(name: str, named: list[str]) -> bool:
    """The promise in other words than the code's: on one of the lists, or asked for."""
    listed = any(fnmatchcase(name, pattern) for pattern in (*exported_env.ALLOWED, *exported_env.OF_THE_NODE))
    secret = name.endswith(("_TOKEN", "_API_KEY", "_PASSWORD"))
    return any(fnmatchcase(name, entry) for entry in named) or (listed and not secret)

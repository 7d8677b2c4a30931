"""The allow-list of exported variables, implemented independently of the code under test."""

from fnmatch import fnmatchcase

from ablatrix.orchestrator.study import exported_env


def allowed(name: str, named: list[str]) -> bool:
    """True if a variable may be exported: it is on an allow-list and not a secret, or requested in `named`."""
    listed = any(fnmatchcase(name, pattern) for pattern in (*exported_env.ALLOWED, *exported_env.OF_THE_NODE))
    secret = name.endswith(("_TOKEN", "_API_KEY", "_PASSWORD"))
    return any(fnmatchcase(name, entry) for entry in named) or (listed and not secret)

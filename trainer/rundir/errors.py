"""Exceptions of trainer and orchestrator. A user sees one line per problem, never a traceback."""


def printable(text: str) -> str:
    """Return the text on one line, with unprintable characters escaped as in Python."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class AblatrixError(Exception):
    """Base class of all errors that Ablatrix raises on purpose."""

    exit_code = 1

    @property
    def lines(self) -> list[str]:
        """The lines to show, one per problem; newlines and escape sequences in names appear as `\\n` and `\\x1b`."""
        return [printable(str(self))]


class UserError(AblatrixError):
    """A user's mistake; the message says what to do instead (exit code 2)."""

    exit_code = 2


class ConfigError(UserError):
    """All problems of a configuration, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    @property
    def lines(self) -> list[str]:
        return [printable(problem) for problem in self.problems]


class DataError(UserError):
    """A data file cannot be used."""


class OfflineCacheError(UserError):
    """Something is missing from the offline cache; the message names the command that fixes it."""


class RunError(AblatrixError):
    """A run or a cluster command failed (exit code 1)."""

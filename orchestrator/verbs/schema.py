"""The verb `schema`: write, or check, the JSON schema of experiment files."""

from __future__ import annotations

import shlex
from pathlib import Path

from ablatrix.orchestrator.study import json_schema
from ablatrix.trainer.rundir.errors import RunError, UserError
from ablatrix.trainer.rundir.files import atomic_write, read_bytes
from ablatrix.trainer.rundir.program import program


def schema(output: Path | None, check: Path | None) -> None:
    """Print the schema, write it to `output`, or raise RunError if the file `check` is not up to date."""
    text = json_schema.text()
    try:
        if check:
            if read_bytes(check).decode("utf-8", "replace") != text:
                raise RunError(f"{check} is not this version's schema; renew it with: {renewal_command(check)}")
        elif output:
            if output.exists() and not output.is_file():
                raise UserError(f"{output} is not a plain file; choose another, or use > instead")
            atomic_write(output, text, durable=False)
        else:
            print(text, end="")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{check or output}: {error.strerror}") from None


def renewal_command(file: Path) -> str:
    """Return the command that writes this version's schema to a file."""
    return f"{program()} schema --output {shlex.quote(str(file))}"

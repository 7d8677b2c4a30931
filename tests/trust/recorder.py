"""Whatever Python opens to write, makes, renames or links below a folder, in every process that is started from here.

An audit hook in a `sitecustomize` on PYTHONPATH writes it down; the hook hears of it before the call is made.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

HOOK = """\
import os, sys
base, log = {below!r}, os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PLACES = {{"open": 0, "os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.truncate": 0}}

def hook(event, args):
    place = PLACES.get(event)
    if place is None or not isinstance(args[place], (str, bytes, os.PathLike)):
        return
    flags = args[2] if event == "open" else 0
    if event == "open" and not flags & WRITING:
        return
    path = os.path.abspath(os.fsdecode(args[place]))
    if path.startswith(base):
        import json
        frame = sys._getframe(1)
        callers = []
        while frame is not None and len(callers) < 4:
            callers.append("%s:%d" % (frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        os.write(log, (json.dumps([event, path, flags, callers]) + "\\n").encode())

sys.addaudithook(hook)
"""


@dataclass(frozen=True)
class Call:
    """One call: its audit event, the path that it makes or writes, the flags of an `open`, who called."""

    event: str
    path: Path
    flags: int
    callers: tuple[str, ...]

    @property
    def follows_links(self) -> bool:
        """Would it write through a link that somebody has put there? mkdir, rename and link never do."""
        return self.event == "os.truncate" or (self.event == "open" and not self.flags & (os.O_EXCL | os.O_NOFOLLOW))


class Recorder:
    """`hook` is to be on PYTHONPATH, which jobs are given too; `calls` is what was done below a folder."""

    def __init__(self, place: Path, below: Path) -> None:
        (place / "hook").mkdir(parents=True)
        self.hook, self.log = place / "hook", place / "calls"
        self.log.touch()
        (self.hook / "sitecustomize.py").write_text(HOOK.format(below=f"{below}/", log=str(self.log)))

    def calls(self) -> list[Call]:
        """All calls so far, in order of their writing."""
        records = map(json.loads, self.log.read_text().splitlines())
        return [Call(event, Path(path), flags, tuple(callers)) for event, path, flags, callers in records]

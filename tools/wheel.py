"""The wheel, the same bytes from everybody: `make wheel`, or `python -m tools.wheel FOLDER`.

What differs between two machines is taken away: files come from git's list (no caches, no runs), with the modes that
git knows, into a folder of their own; their time is that of the commit; setuptools is the locked one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def export(target: Path) -> None:
    """Copy what git lists, as it stands in the folder now, with modes that do not depend on a umask."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if not (source := ROOT / name).is_file():
            continue
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        copy.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)


def commit_time() -> str:
    """Seconds since 1970 of the commit."""
    command = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def build(target: Path) -> Path:
    """The wheel in `target`. Raises subprocess.CalledProcessError outside a git checkout, or where the build fails."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "source", Path(folder) / "made"
        source.mkdir()
        made.mkdir()
        export(source)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environ |= {"SOURCE_DATE_EPOCH": commit_time(), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", BUILD, str(made)]
        subprocess.run(command, cwd=source, env=environ, umask=0o022, check=True, capture_output=True, text=True)
        (wheel,) = made.glob("*.whl")
        return Path(shutil.copyfile(wheel, target / wheel.name))


def main(arguments: list[str]) -> int:
    """Build it and print its hash."""
    try:
        wheel = build(Path(arguments[0]) if arguments else ROOT / "dist")
    except subprocess.CalledProcessError as error:
        print(f"wheel: {error.cmd[0]} failed: {(error.stderr or '').strip()}", file=sys.stderr)
        return 1
    print(f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {os.path.relpath(wheel)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

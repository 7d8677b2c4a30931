"""Secrets that nobody can guess, planted where people keep theirs, and the search for them in every byte."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import string
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ablatrix.orchestrator.store.code_snapshot import code_root
from tests.support.checkout import copy_checkout
from tests.support.workspace import Workspace

LOOKER = Path(__file__).with_name("looker.py")
SHELL = (
    "WANDB_API_KEY",
    "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "GITHUB_TOKEN",
    "MY_PASSWORD",
    "FOO",
    "HUGGING_FACE_HUB_TOKEN",
)
ELSEWHERE = (
    *("https_proxy", "argv", "yaml", "yaml comment", "netrc", "hub token file"),
    *("git remote", "pip config", "tracked .env", "tracked settings", "key file"),
)
NAMED = "MYLAB_SECRET"  # goes to the jobs, by `export:`


def write_study(workspace: Workspace, **changes: Any) -> Path:
    """Two cells of a command that writes down which variables it sees."""
    study = {
        "name": "study",
        "command": "python looker.py {run_dir} {mode}",
        "base": {"mode": "run"},
        "features": {"other": {"mode": "again"}},
        "design": ["baseline", "one_at_a_time"],
        "metrics": {"regex": r"iter (?P<iter>\d+): loss (?P<loss>\S+)"},
        **changes,
    }
    shutil.copy(LOOKER, workspace.folder)
    path = workspace.folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def make(seed: int) -> dict[str, str]:
    """Where it is planted -> the canary."""
    rng = random.Random(seed)
    alphabet = string.ascii_letters + string.digits
    return {place: "".join(rng.choices(alphabet, k=32)) for place in (*SHELL, *ELSEWHERE, NAMED)}


def plant(canaries: dict[str, str], workspace: Workspace) -> list[Path]:
    """Plant all but those of the YAML file and the command line; the files that hold them."""
    home, checkout = workspace.folder / "home", workspace.folder / "checkout"
    files = {
        home / ".netrc": f"machine api.wandb.ai\n  login user\n  password {canaries['netrc']}\n",
        home / ".config/pip/pip.conf": f"[global]\nindex-url = https://me:{canaries['pip config']}@pypi.example/\n",
        home / "hf/token": canaries["hub token file"],
    }
    _make_checkout(checkout)
    remote = f"https://user:{canaries['git remote']}@git.example/x.git"
    subprocess.run(["git", "-C", checkout, "remote", "add", "origin", remote], check=True)
    key = f"-----BEGIN PRIVATE KEY-----\n{canaries['key file']}\n-----END PRIVATE KEY-----\n"
    files |= {
        checkout / ".env": f"LAB={canaries['tracked .env']}\n",
        checkout / "orchestrator/.env": f"LAB={canaries['tracked .env']}\n",
        checkout / "settings.yaml": f"lab:\n  db_password: {canaries['tracked settings']}\n",
        checkout / "models/id_rsa": key,
        checkout / "trainer/node.pem": key,
        checkout / ".git/config": (checkout / ".git/config").read_text(),
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    workspace.environment |= {
        **{name: canaries[name] for name in (*SHELL, NAMED)},
        **{"https_proxy": f"http://me:{canaries['https_proxy']}@proxy:3128", "HF_HOME": str(home / "hf")},
        **{"HOME": str(home), "NETRC": str(home / ".netrc"), "PYTHONPATH": str(checkout)},
    }
    return list(files)


def _make_checkout(folder: Path) -> None:
    """The code under test as a git checkout of its own, with files of the user's that are about to change."""
    copy_checkout(folder)
    shutil.copy(code_root() / "ablatrix_run.py", folder)
    for name in (".env", "orchestrator/.env", "settings.yaml"):
        (folder / name).write_text("lab:\n  before: 1\n")
    identity = ["-c", "user.name=user", "-c", "user.email=user@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", folder, *words], check=True)


def forms(canary: str) -> list[bytes]:
    """The ways in which its bytes may stand in a file: plain, UTF-16, hex, base64 at any offset."""
    raw = canary.encode()
    found = [raw, canary.encode("utf-16-le"), raw.hex().encode(), raw.hex().upper().encode(), raw[::-1]]
    for offset in range(3):  # without the ends, which depend on the neighbors
        found.append(base64.b64encode(b"\0" * offset + raw)[4:-4])
    return found


def contents(data: bytes, depth: int = 0) -> Iterator[bytes]:
    """The bytes themselves, and what is packed in them: zip (.pt, .npz), tar, gzip, bzip2, xz, zlib."""
    yield data
    if depth > 3:
        return
    for opened in (gzip.decompress, bz2.decompress, lzma.decompress, zlib.decompress):
        try:
            inner = opened(data)
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error):
            continue
        yield from contents(inner, depth + 1)
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from contents(archive.read(name), depth + 1)
    elif data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                file = archive.extractfile(member)
                yield from contents(file.read(), depth + 1) if file else ()


def hits(canaries: dict[str, str], data: bytes) -> set[str]:
    """Places whose canary is in these bytes."""
    wanted = [(place, form) for place, canary in canaries.items() for form in forms(canary)]
    return {place for part in contents(data) for place, form in wanted if form in part}


def search(canaries: dict[str, str], folder: Path, planted: list[Path]) -> tuple[set[tuple[str, str]], int]:
    """((place, file) of every hit, number of files looked through) below a folder, names included."""
    found: set[tuple[str, str]] = set()
    files = 0
    for path in sorted(folder.rglob("*")):
        found |= {(place, str(path)) for place in hits(canaries, os.fsencode(path.name))}
        if path.is_symlink():
            found |= {(place, str(path)) for place in hits(canaries, bytes(path.readlink()))}
        elif path.is_file() and path not in planted:
            files += 1
            found |= {(place, str(path)) for place in hits(canaries, path.read_bytes())}
    return found, files

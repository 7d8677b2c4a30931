"""Expand paths given by users: `~`, `$VARIABLES`, `file://`. Torch-free."""

from __future__ import annotations

import os
import re
import shlex
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator

from ablatrix.trainer.rundir.program import program

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
VARIABLE = re.compile(r"(?<![^/])\$(?:(\w+)|\{(\w+)\})(?![^/])")  # a whole part of a path
DOWNLOADS = {  # scheme -> command that downloads a URL
    **dict.fromkeys(("http", "https", "ftp"), "curl -fLO {}"),
    **dict.fromkeys(("s3", "s3a", "s3n"), "aws s3 cp {} ."),
    **dict.fromkeys(("gs", "gcs"), "gcloud storage cp {} ."),
    **dict.fromkeys(("ssh", "scp", "sftp"), "scp {} ."),
}
HUB_FILE = re.compile(
    r"(?:hf://datasets/(?P<repo>[^/]+/[^/@]+)(?:@[^/]+)?/(?P<file>.+)"
    r"|https?://huggingface\.co/datasets/(?P<web_repo>[^/]+/[^/]+)/(?:resolve|blob|raw)/[^/]+/(?P<web_file>[^?#]+).*)"
)


def expand_path(text: str) -> str:
    """Return a path with `~`, `$NAME` and `file://` expanded and surrounding whitespace removed.

    Raises ValueError for a URL, an unset variable, an unknown user, or a name that is not UTF-8. If a file with exactly
    the given name exists, the name is returned unchanged.
    """
    path = text.strip()
    if text and not path:
        raise ValueError("blank; give a path")
    _require_utf8(path)
    if URL.match(path):
        path = _local_path(path)
    if "$" in path and not os.path.lexists(path):
        path = VARIABLE.sub(_variable, path)
    expanded = os.path.expanduser(path)  # noqa: PTH111  (Path raises for an unknown user)
    if expanded.startswith("~") and "/" in expanded and not os.path.lexists(expanded):
        user = expanded.partition("/")[0]
        raise ValueError(f"{text!r}: the home folder of {user} is not known here; write the full path")
    return expanded


def _require_utf8(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise ValueError(
            f"the name '{shown}' is not UTF-8; rename it (convmv -f latin1 -t utf8 --notest), or link to it under "
            "an ASCII name (ln -s)"
        ) from None


def _variable(found: re.Match[str]) -> str:
    name = found[1] or found[2]
    if name not in os.environ:
        raise ValueError(f"${name} is not set in this environment; set it, or write the full path")
    return os.environ[name]


def _local_path(url: str) -> str:
    """Return the path of a file:// URL. Raises ValueError for other URLs, with the command that downloads them."""
    parts = urlsplit(url)
    if parts.scheme.lower() == "file" and parts.netloc in ("", "localhost"):
        return unquote(parts.path)
    if parts.scheme.lower() == "file":  # file://data/x.jsonl: probably meant as a relative path
        return unquote(parts.netloc + parts.path)
    command = download_command(url)
    how = f" with `{command}`" if command else ""
    raise ValueError(f"{url!r} is a URL, and runs read files only; download it first{how}, then give the file's path")


def download_command(url: str) -> str:
    """Return the shell command that downloads `url`, '' if none is known."""
    hub = HUB_FILE.fullmatch(url)
    if hub:
        repo, file = hub["repo"] or hub["web_repo"], hub["file"] or hub["web_file"]
        return f"{program()} warm-cache --data {shlex.quote(f'{repo}:{unquote(file)}')}"
    return DOWNLOADS.get(urlsplit(url).scheme.lower(), "").format(shlex.quote(url))


UserPath = Annotated[str, AfterValidator(expand_path)]

"""Download from the Hugging Face hub (or HF_ENDPOINT), verifying each file against the hash that the hub reports."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ablatrix.trainer.rundir.errors import RunError, UserError
from ablatrix.trainer.rundir.owners import make_private_folder

ADVICE = "run this where there is internet, or use --from DIR with a copy of the files"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Download:
    """A downloaded file. commit: commit of the repository."""

    path: Path
    commit: str
    sha256: str
    size: int


class MissingFileError(UserError):
    """The repository has no such file."""


def fetch(repo: str, file: str, staging: Path, repo_type: str = "model", revision: str = "main") -> Download:
    """Download one file to `staging` and verify it. An interrupted download is resumed by the next call.

    staging: a folder that is made private, because its content is trusted and resumed. Raises OSError if it cannot be
    created, MissingFileError, UserError (no such repository or revision, access denied, HF_HUB_OFFLINE) or RunError (no
    connection, truncated, wrong hash).
    """
    make_private_folder(staging)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # show only the final error, not the retries
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        facts = get_hf_file_metadata(hf_hub_url(repo, file, repo_type=repo_type, revision=revision))
        commit, etag = facts.commit_hash or "", facts.etag or ""
        path = Path(
            hf_hub_download(repo, file, repo_type=repo_type, revision=commit or revision, local_dir=str(staging))
        )
    except Exception as error:
        raise _explain(error, f"{repo}: {file}", repo) from error
    size = path.stat().st_size
    sha256, git = hashes(path)
    other = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag) and etag not in (sha256, git)
    if other or (facts.size is not None and size != facts.size):
        path.unlink()
        raise RunError(f"{repo}: {file}: the file differs from what the hub reports (size or hash); try again")
    return Download(path, commit, sha256, size)


def list_files(repo: str) -> tuple[list[str], str]:
    """Return (files, commit) of a data set. Raises UserError or RunError like `fetch`."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(repo)
    except Exception as error:
        raise _explain(error, repo, repo) from error
    return sorted(file.rfilename for file in info.siblings or ()), info.sha or "main"


def hashes(path: Path) -> tuple[str, str]:
    """Return (SHA-256, git blob hash): the hub's ETag is the former for large files and the latter for small ones."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as source:
        while chunk := source.read(CHUNK):
            sha256.update(chunk)
            git.update(chunk)
    return sha256.hexdigest(), git.hexdigest()


def _explain(error: Exception, what: str, repo: str) -> UserError | RunError:
    from huggingface_hub import errors

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    terms = f"access must be granted first: accept its terms on {endpoint}/{repo} and set HF_TOKEN"
    unknown = f"no such repository at {endpoint} (or it is private and HF_TOKEN is not set)"
    refusals = {
        errors.GatedRepoError: UserError(f"{repo}: {terms}"),
        errors.RepositoryNotFoundError: UserError(f"{repo}: {unknown}"),
        errors.RevisionNotFoundError: UserError(f"{what}: no such revision at {endpoint}"),
        errors.RemoteEntryNotFoundError: MissingFileError(f"{what}: no such file in the repository at {endpoint}"),
        errors.HFValidationError: UserError(f"{repo!r} is not the name of a repository; write owner/name"),
    }
    for kind, refusal in refusals.items():
        if isinstance(error, kind):
            return refusal
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "on", "yes")
    if offline or isinstance(error, errors.OfflineModeIsEnabled):
        return UserError(f"{what}: HF_HUB_OFFLINE is set, which forbids downloads; unset it, or {ADVICE}")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else "?"
        return RunError(f"{what}: {endpoint} answered with status {status}; try again later, or {ADVICE}")
    if "Consistency check failed" in str(error) or type(error).__name__ == "RemoteProtocolError":
        return RunError(f"{what}: the download was cut short; run this again to continue it")
    if isinstance(error, PermissionError):
        return RunError(f"{what}: no permission to write: {error}")
    first = (str(error) or type(error).__name__).splitlines()[0]
    return RunError(f"{what}: no connection to {endpoint} ({first}); {ADVICE}")

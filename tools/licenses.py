"""Write docs/licenses.md: the license of every locked package, as the package index states it; `make licenses`.

Raises SystemExit naming the package whose license is missing or not in ALLOWED: such a package must be reviewed by a
person before it enters the lock.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools import lock

PAGE = lock.ROOT / "docs" / "licenses.md"
PARTS = {
    "requirements/common.txt": "runs",
    "requirements-cuda.txt": "runs on GPUs",
    "requirements-dev.txt": "tests and checks",
    "requirements/tools.txt": "locking and auditing",
    "requirements/docs.txt": "the documentation site",
}
PERMISSIVE = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0"),
    *("CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-CMU", "PSF-2.0", "Zlib"),
}
# MPL-2.0 requires publishing changes to a package's own files, and these are used unchanged. NVIDIA's libraries are
# proprietary but free to use; the CPU lock has none of them.
ALLOWED = PERMISSIVE | {"MPL-2.0", "LicenseRef-NVIDIA-Proprietary"}
STATED = {  # licenses from the packages' own files, where the metadata is missing or not specific enough
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",  # a metapackage without files
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
}
SPELLINGS = {
    r"apache[ -](software )?(license,? )?(version )?2?(\.0)?( license)?": "Apache-2.0",
    r"apache software license": "Apache-2.0",
    r"(the )?mit( license)?": "MIT",
    r"(new |modified )?bsd[ -]3[ -]clause( license)?|3-clause bsd.*": "BSD-3-Clause",
    r"2-clause bsd|bsd[ -]2[ -]clause( license)?": "BSD-2-Clause",
    r"bsd( license)?": "BSD",
    r"isc( license)?( \(iscl\))?": "ISC",
    r"mozilla public license 2\.0.*|mpl[ -]?2\.0": "MPL-2.0",
    r"python software foundation license|psf(-2\.0)?": "PSF-2.0",
    r"nvidia proprietary software|licenseref-nvidia-proprietary": "LicenseRef-NVIDIA-Proprietary",
}


def split_expression(expression: str) -> list[str]:
    """Return the licenses that an SPDX expression names."""
    return [part.strip(" ()") for part in re.split(r"\b(?:AND|OR)\b", expression)]


def find_license(name: str, metadata: Mapping[str, Any]) -> str:
    """Return the license of a package as an SPDX expression. Raises ValueError if its metadata states none."""
    if name in STATED:
        return STATED[name]
    if metadata.get("license_expression"):
        return str(metadata["license_expression"])
    text = str(metadata.get("license") or "").strip()
    if text and set(split_expression(text)) <= ALLOWED:
        return text
    classifiers = [line for line in metadata.get("classifier", []) if line.startswith("License")]
    candidates = [text, *(line.rpartition("::")[2].strip() for line in classifiers), text.partition("\n")[0]]
    for candidate in candidates:
        for pattern, license in SPELLINGS.items():
            if re.fullmatch(pattern, candidate, re.IGNORECASE):
                return license
    raise ValueError(f"{name}: license not understood: {candidates}")


def fetch_metadata(entries: list[lock.Entry], python: str) -> dict[str, dict[str, Any]]:
    """Return the metadata of packages, using the pip (24 or newer) of `python`; nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder) / "wanted.txt", Path(folder) / "report.json"
        wanted.write_text("".join(f"{entry.pin}\n" for entry in entries))
        options = ["--dry-run", "--no-deps", "--ignore-installed", "--use-feature=fast-deps", "--quiet"]
        command = [python, "-m", "pip", "install", *options, "--report", str(report), "-r", str(wanted)]
        subprocess.run(command, check=True)
        items = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {re.sub("[-_.]+", "-", item["name"]).lower(): item for item in items}


def locked() -> dict[str, list[lock.Entry]]:
    """Return the entries of each lock listed on the page."""
    return {name: lock.entries((lock.ROOT / name).read_text()) for name in PARTS}


def render(licenses: Mapping[str, str]) -> str:
    """Return the page as Markdown."""
    lines = [HEAD]
    for name, purpose in PARTS.items():
        lines += [f"\n## For {purpose}: {name}\n", "| package | version | license |", "|---|---|---|"]
        lines += [f"| {entry.name} | {entry.version} | {licenses[entry.name]} |" for entry in locked()[name]]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write the page. The only argument is the Python whose pip queries the index."""
    entries = {entry.name: entry for found in locked().values() for entry in found}
    found = fetch_metadata(list(entries.values()), arguments[0] if arguments else sys.executable)
    try:
        licenses = {name: find_license(name, found[name]) for name in entries}
    except ValueError as error:
        raise SystemExit(f"licenses: {error}") from None
    for name, license in licenses.items():
        if unknown := [part for part in split_expression(license) if part not in ALLOWED]:
            raise SystemExit(f"licenses: {name}: {', '.join(unknown)} is not among the allowed licenses")
    PAGE.write_text(render(licenses))
    print(f"{PAGE.relative_to(lock.ROOT)}: {len(licenses)} packages")
    return 0


HEAD = """# Licenses

Ablatrix is under the MIT license (`LICENSE`) and contains no third-party code.

What is installed beside it, all versions as locked. Made by `make licenses` from the packages' own metadata; a license
that is neither permissive, MPL-2.0 nor NVIDIA's stops it. MPL-2.0 asks for the source of changed files of that package
itself. NVIDIA's libraries are proprietary and free to use under NVIDIA's terms; without a GPU none is installed."""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

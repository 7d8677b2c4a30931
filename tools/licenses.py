"""docs/licenses.md: the licence of every locked package, as its own metadata states it; `make licenses`.

Raises SystemExit naming the package where a licence is missing or not among the ALLOWED ones: such a package is looked
at by a person before it enters the lock.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tools import lock

PAGE = lock.ROOT / "docs" / "licenses.md"
PARTS = {
    "requirements/common.txt": "runs",
    "requirements-cuda.txt": "runs on GPUs",
    "requirements-dev.txt": "tests and checks",
    "requirements/tools.txt": "locking and auditing",
}
PERMISSIVE = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0"),
    *("CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-CMU", "PSF-2.0", "Zlib"),
}
# MPL-2.0 asks for the source of changed files of these packages themselves, and they are used as they are. NVIDIA's
# libraries are free to use and proprietary; the CPU lock has none of them.
ALLOWED = PERMISSIVE | {"MPL-2.0", "LicenseRef-NVIDIA-Proprietary"}
STATED = {  # where the metadata says nothing or not enough, from the package's own files
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",  # names other packages and holds no file
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


def spelt(text: str) -> str | None:
    """The SPDX name of a licence written some other way; None for what is not recognised."""
    for pattern, name in SPELLINGS.items():
        if re.fullmatch(pattern, text.strip(), re.IGNORECASE):
            return name
    return None


def parts(expression: str) -> list[str]:
    """The licences that an SPDX expression names."""
    return [part.strip(" ()") for part in re.split(r"\b(?:AND|OR)\b", expression)]


def licence(name: str, facts: Mapping[str, Any]) -> str:
    """An SPDX expression. `facts`: expression, text and classifiers of a package's metadata.

    Raises ValueError where they say nothing that is understood.
    """
    if name in STATED:
        return STATED[name]
    if facts["expression"]:
        return str(facts["expression"])
    text = str(facts["text"] or "").strip()
    if text and all(part in ALLOWED for part in parts(text)):
        return text
    said = [text, *(item.rpartition("::")[2] for item in facts["classifiers"]), text.splitlines()[0] if text else ""]
    for word in said:
        if found := spelt(word):
            return found
    raise ValueError(f"{name}: licence not understood: {said}")


def installed(entry: lock.Entry) -> dict[str, Any] | None:
    """What an installed package's metadata says; None where this version is not installed here."""
    try:
        found = metadata.metadata(entry.name)
    except metadata.PackageNotFoundError:
        return None
    if found["Version"].split("+")[0] != version(entry):
        return None
    fields = {key: found.get_all(key) or [] for key in ("License-Expression", "License", "Classifier")}
    return {
        "expression": next(iter(fields["License-Expression"]), None),
        "text": next(iter(fields["License"]), None),
        "classifiers": [item for item in fields["Classifier"] if item.startswith("License")],
    }


def reported(entries: list[lock.Entry], python: str) -> dict[str, dict[str, Any]]:
    """The same, as the package index says, through the pip of `python` (24 or newer); nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder) / "wanted.txt", Path(folder) / "report.json"
        wanted.write_text("".join(f"{entry.pin}\n" for entry in entries))
        options = ["--dry-run", "--no-deps", "--ignore-installed", "--use-feature=fast-deps", "--quiet"]
        command = [python, "-m", "pip", "install", *options, "--report", str(report), "-r", str(wanted)]
        subprocess.run(command, check=True)
        items = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {
        re.sub("[-_.]+", "-", item["name"]).lower(): {
            "expression": item.get("license_expression"),
            "text": item.get("license"),
            "classifiers": [line for line in item.get("classifier", []) if line.startswith("License")],
        }
        for item in items
    }


def version(entry: lock.Entry) -> str:
    """The version, without the name of a build."""
    return entry.pin.partition("==")[2].partition("+")[0]


def locked() -> dict[str, list[lock.Entry]]:
    """The entries of each lock that the page lists."""
    return {name: lock.entries((lock.ROOT / name).read_text()) for name in PARTS}


def render(rows: Mapping[str, str]) -> str:
    """The page; `rows` gives the licence of each package."""
    lines = [HEAD]
    for name, purpose in PARTS.items():
        lines += [f"\n## For {purpose}: {name}\n", "| package | version | licence |", "|---|---|---|"]
        lines += [f"| {entry.name} | {version(entry)} | {rows[entry.name]} |" for entry in locked()[name]]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write the page. One argument: the Python whose pip asks for what is not installed here."""
    entries = {entry.name: entry for found in locked().values() for entry in found}
    facts = {name: said for name, entry in entries.items() if (said := installed(entry))}
    if missing := [entry for name, entry in entries.items() if name not in facts]:
        facts |= reported(missing, arguments[0] if arguments else sys.executable)
    try:
        rows = {name: licence(name, facts[name]) for name in entries}
    except ValueError as error:
        raise SystemExit(f"licenses: {error}") from None
    for name, row in rows.items():
        if surprise := [part for part in parts(row) if part not in ALLOWED]:
            raise SystemExit(f"licenses: {name}: {', '.join(surprise)} is not among the allowed licences")
    PAGE.write_text(render(rows))
    print(f"{PAGE.relative_to(lock.ROOT)}: {len(rows)} packages")
    return 0


HEAD = """# Licences

Ablatrix is under the MIT licence (`LICENSE`). Its report's interactive curves are drawn by uPlot, which is part of this
repository, MIT (`orchestrator/report/vendor/uPlot.LICENSE`). Nothing else of others is part of it.

What is installed beside it, all versions as locked. Made by `make licenses` from the packages' own metadata; a licence
that is neither permissive, MPL-2.0 nor NVIDIA's stops it. MPL-2.0 asks for the source of changed files of that package
itself. NVIDIA's libraries are proprietary and free to use under NVIDIA's terms; without a GPU none is installed."""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Lock files of the dependencies: `make lock`, or `make lock ARGS=--upgrade` for newer versions.

    requirements/common.txt    what runs need, except torch
    requirements.txt           common, with the CPU build of torch
    requirements-cuda.txt      common, with PyPI's torch, which on Linux brings CUDA
    requirements-dev.txt       common, plus what tests and checks need
    requirements/docs.txt      for `make docs`, in a separate virtual environment
    requirements/tools.txt     for this file and `make audit`, in a separate virtual environment

Versions follow from pyproject.toml: `uv pip compile` chooses them, keeps those already locked, and takes the hashes of
all files of a version from PyPI. The CPU build of torch for Linux is not on PyPI; its files are listed in
requirements/torch-cpu.html, which is generated from PyTorch's own index.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu/torch/"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = (("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64"))
CUDA = re.compile(r"torch$|triton$|nvidia-|cuda-")  # packages that differ between the two builds of torch
COMPILE = ("pip", "compile", "--quiet", "--no-header", "--no-annotate", "--universal", "--python-version", PYTHONS[0])


@dataclass(frozen=True)
class Entry:
    """One locked package: `pin` is name==version, `marker` says where it is needed ("" means everywhere)."""

    name: str
    pin: str
    marker: str
    hashes: tuple[str, ...]

    @property
    def version(self) -> str:
        """The version without a build suffix such as +cpu."""
        return self.pin.partition("==")[2].partition("+")[0]

    def __str__(self) -> str:
        first = f"{self.pin} ; {self.marker}" if self.marker else self.pin
        return " \\\n".join([first, *(f"    --hash={value}" for value in self.hashes)]) + "\n"


def entries(text: str) -> list[Entry]:
    """Return the entries of a lock. Raises ValueError for a line that is not one."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith(("#", "-")):
            continue
        match = re.fullmatch(r"(([\w.-]+)==[\w.+!]+)\s*(?:;\s*(.*?))?((?:\s+--hash=sha256:[0-9a-f]{64})*)\s*", line)
        if match is None:
            raise ValueError(f"not an entry of a lock: {line}")
        pin, name, marker, hashes = match.groups()
        found.append(Entry(name, pin, marker or "", tuple(sorted(re.findall(r"sha256:\w+", hashes)))))
    return found


def environments() -> list[dict[str, str]]:
    """Return the marker variables of each system that the locks support."""
    return [
        {
            "sys_platform": platform,
            "platform_system": system,
            "platform_machine": machine,
            "python_version": python,
            "python_full_version": f"{python}.1",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }
        for platform, system, machine in PLATFORMS
        for python in PYTHONS
    ]


def supported(entry: Entry) -> Entry | None:
    """Return the entry, without its marker if that is always true; None if no supported system needs the package."""
    true = [Marker(entry.marker).evaluate(where) if entry.marker else True for where in environments()]
    if not any(true):
        return None
    return Entry(entry.name, entry.pin, "" if all(true) else entry.marker, entry.hashes)


def resolve(arguments: list[str], known: list[Path]) -> dict[str, Entry]:
    """Return the entries that uv resolves; versions from the `known` locks are kept where possible."""
    pins = [entry for path in known if path.is_file() for entry in entries(path.read_text())]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock.txt"
        output.write_text("".join(f"{pin.split('+')[0]}\n" for pin in {entry.pin for entry in pins}))
        command = ["uv", *COMPILE, "--generate-hashes", "--output-file", str(output), *arguments]
        subprocess.run(command, cwd=ROOT, check=True)
        kept = [supported(entry) for entry in entries(output.read_text())]
    return {entry.name: entry for entry in kept if entry is not None}


def cpu_page(version: str) -> str:
    """Return requirements/torch-cpu.html for a version: from PyTorch's index, else the existing page.

    Raises SystemExit if neither has the version.
    """
    path = ROOT / "requirements" / "torch-cpu.html"
    tags = "|".join("cp" + python.replace(".", "") for python in PYTHONS)
    wanted = rf"torch-{re.escape(version)}\+cpu-({tags})-\1-manylinux_\w+_(x86_64|aarch64)\.whl"
    try:
        with urllib.request.urlopen(CPU_INDEX, timeout=30) as answer:
            links = [html.unescape(link) for link in re.findall(r'href="([^"]+)"', answer.read().decode())]
    except OSError as error:
        if path.is_file() and f"torch-{version}%2Bcpu" in (text := path.read_text()):
            print(f"lock: {CPU_INDEX}: {error}; the files of torch {version} are kept as they were", file=sys.stderr)
            return text
        raise SystemExit(f"lock: {CPU_INDEX}: {error}: the CPU build of torch {version} cannot be locked") from None
    found = {}
    for link in links:
        url, _, digest = urllib.parse.urljoin(CPU_INDEX, link).partition("#")
        name = urllib.parse.unquote(url.rpartition("/")[2])
        if re.fullmatch(wanted, name) and re.fullmatch("sha256=[0-9a-f]{64}", digest):
            found[name] = digest
    if not found:
        raise SystemExit(f"lock: {CPU_INDEX} has no CPU build of torch {version}")
    return PAGE.format(links="\n".join(link_of(name, found[name]) for name in sorted(found)))


def link_of(name: str, digest: str) -> str:
    """Return the page's line for a file."""
    address = f"https://download.pytorch.org/whl/cpu/{urllib.parse.quote(name)}#{digest}"
    return f'<a href="{address}" data-yanked="{REASON}">{name}</a><br>'


REASON = "nothing is wrong with it; so marked, it is taken only where no index or folder of yours offers this build"
PAGE = """<!DOCTYPE html>
<!-- The CPU builds of torch for Linux as PyTorch's index lists them; read by pip, see requirements.txt. -->
<html><body>
{links}
</body></html>
"""


def cpu_torch(page: str, torch: Entry) -> list[Entry]:
    """Return torch without CUDA: the page's files for Linux, PyPI's torch for macOS."""
    linux = tuple(sorted(f"sha256:{digest}" for digest in re.findall(r"#sha256=([0-9a-f]{64})", page)))
    return [
        Entry("torch", f"{torch.pin}+cpu", "sys_platform == 'linux'", linux),
        Entry("torch", torch.pin, "sys_platform != 'linux'", torch.hashes),
    ]


def write(name: str, heading: str, found: list[Entry], *options: str) -> None:
    """Write a lock file with a heading that states its purpose."""
    lines = [*(f"# {line}" for line in heading.splitlines()), "# Made by `make lock`.", *options]
    body = "".join(str(entry) for entry in sorted(found, key=lambda entry: (entry.name, entry.marker)))
    (ROOT / name).write_text("\n".join(lines) + "\n" + body)
    print(f"{name}: {len(found)} packages, {sum(len(entry.hashes) for entry in found)} hashes")


def main(arguments: list[str]) -> int:
    """Write all locks; `arguments` are passed to uv."""
    names = ["requirements.txt", "requirements-cuda.txt", "requirements-dev.txt", "requirements/common.txt"]
    locks = [ROOT / name for name in names]
    whole = resolve([*arguments, "--extra", "dev", "pyproject.toml"], locks)
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder) / "chosen.txt"
        chosen.write_text("".join(f"{entry.pin}\n" for entry in whole.values()))
        runs = resolve(["--constraint", str(chosen), "pyproject.toml"], [])
    cuda = [entry for entry in runs.values() if CUDA.match(entry.name)]
    tools = resolve([*arguments, "--group", "pyproject.toml:tools"], [ROOT / "requirements" / "tools.txt"])
    docs = resolve([*arguments, "--group", "pyproject.toml:docs"], [ROOT / "requirements" / "docs.txt"])
    page = cpu_page(whole["torch"].pin.partition("==")[2])

    (ROOT / "requirements" / "torch-cpu.html").write_text(page)
    common = "-r requirements/common.txt"
    write("requirements/common.txt", COMMON, [entry for entry in runs.values() if not CUDA.match(entry.name)])
    cpu = cpu_torch(page, whole["torch"])
    write("requirements.txt", CPU, cpu, common, "--find-links requirements/torch-cpu.html")
    write("requirements-cuda.txt", GPU, cuda, common)
    write("requirements-dev.txt", DEV, [entry for name, entry in whole.items() if name not in runs], common)
    write("requirements/tools.txt", TOOLS, list(tools.values()))
    write("requirements/docs.txt", DOCS, list(docs.values()))
    return 0


COMMON = "What runs were tested with, but for torch; requirements.txt and requirements-cuda.txt include it."
CPU = """What runs were tested with, without a GPU: pip install --no-deps --require-hashes -r requirements.txt
On Linux this is PyTorch's own CPU build, which is not on PyPI; pip finds it through the page named here."""
GPU = """What runs need on NVIDIA GPUs: pip install --no-deps --require-hashes -r requirements-cuda.txt
Everything is on PyPI. It works without a GPU as well, but is gigabytes larger."""
DEV = "What tests and checks need besides: after, or together with, requirements.txt or requirements-cuda.txt."
DOCS = "For `make docs`, in a virtual environment of its own."
TOOLS = "For `make lock`, `make audit` and `make licenses`, in a virtual environment of their own."

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

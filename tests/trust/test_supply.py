"""What is installed is what was locked, what is built is what was committed, what was downloaded is what is read."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data import tokenizer
from ablatrix.trainer.data.manifest import TOKENIZER_FILES
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import OfflineCacheError
from tests.support.evidence import Tally
from tools import licenses, lock

ROOT = lock.ROOT
COMMON = "requirements/common.txt"
LOCKS = ("requirements.txt", "requirements-cuda.txt", "requirements-dev.txt", COMMON, "requirements/tools.txt")
BUILDS = {"cpu": "requirements.txt", "cuda": "requirements-cuda.txt"}


def entries(name: str) -> list[lock.Entry]:
    return lock.entries((ROOT / name).read_text())


def pins(build: str, where: dict[str, str], *more: str) -> dict[str, str]:
    """{package: version} that one of the builds installs on a system."""
    listed = [entry for name in (BUILDS[build], COMMON, *more) for entry in entries(name)]
    found: dict[str, str] = {}
    for entry in listed:
        if not entry.marker or Marker(entry.marker).evaluate(where):
            assert entry.name not in found, f"{entry.name} twice on {where}"
            found[entry.name] = entry.pin.partition("==")[2]
    return found


def project() -> tuple[list[Requirement], list[Requirement]]:
    """(dependencies, those of the extra dev) of pyproject.toml."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*map(Requirement, table["dependencies"])], [*map(Requirement, table["optional-dependencies"]["dev"])]


def test_every_locked_package_has_its_hashes(tally: Tally) -> None:
    packages = hashes = 0
    for name in LOCKS:
        found = entries(name)
        assert len({(entry.name, entry.marker) for entry in found}) == len(found), name
        for entry in found:
            assert entry.hashes, f"{name}: {entry.name} has no hash"
            packages, hashes = packages + 1, hashes + len(entry.hashes)
        options = [line for line in (ROOT / name).read_text().splitlines() if line.startswith("-")]
        assert set(options) <= {"-r requirements/common.txt", "-r requirements.txt", *page_option()}, name
    linked = set(re.findall(r"#sha256=([0-9a-f]{64})", (ROOT / "requirements/torch-cpu.html").read_text()))
    (linux,) = (entry for entry in entries("requirements.txt") if entry.pin.endswith("+cpu"))
    assert {f"sha256:{digest}" for digest in linked} == set(linux.hashes)
    (pypi,) = (entry for entry in entries("requirements-cuda.txt") if entry.name == "torch")
    assert not set(pypi.hashes) & set(linux.hashes)
    tally("every locked package has a version and hashes", cases=packages, detail=f"{hashes} hashes in 5 locks")


def page_option() -> list[str]:
    return ["--find-links requirements/torch-cpu.html"]


def test_the_locks_satisfy_the_project_on_every_system(tally: Tally) -> None:
    runs, dev = project()
    checked = 0
    for where in lock.environments():
        for build in BUILDS:
            found = pins(build, where, "requirements-dev.txt")
            for need in [*runs, *dev]:
                if need.marker is None or need.marker.evaluate(where):
                    version = found[canonicalize_name(need.name)]
                    assert need.specifier.contains(version), f"{need} but {version} on {where}"
                    checked += 1
        proprietary = [name for name in pins("cpu", where) if re.match("nvidia-|triton|cuda-", name)]
        assert not proprietary, "the CPU lock brings CUDA"
        assert ("nvidia-cublas" in pins("cuda", where)) == (where["sys_platform"] == "linux")
    tally(
        "the locks satisfy pyproject.toml",
        cases=checked,
        detail=f"specifiers; CPU and CUDA, {len(lock.environments())} systems",
    )


def test_locked_packages_satisfy_each_other_and_none_is_idle(tally: Tally) -> None:
    """By the metadata of what is installed; what CUDA brings is for uv's own solution."""
    environment = {key: str(value) for key, value in default_environment().items()}
    locked = pins("cpu", environment, "requirements-dev.txt")
    strangers = [name for name, version in locked.items() if not is_installed(name, version)]
    if strangers:
        pytest.skip(f"not the locked environment, by {', '.join(strangers)}")
    runs, dev = project()
    waiting = [(canonicalize_name(need.name), need, frozenset(need.extras)) for need in [*runs, *dev] if active(need)]
    reached: set[tuple[str, frozenset[str]]] = set()
    edges = 0
    while waiting:
        name, need, extras = waiting.pop()
        assert need.specifier.contains(locked[name], prereleases=True), f"{need}, but {locked[name]} is locked"
        edges += 1
        if (name, extras) in reached:
            continue
        reached.add((name, extras))
        for child in map(Requirement, metadata.requires(name) or []):
            if active(child) or any(active(child, extra) for extra in extras):
                waiting.append((canonicalize_name(child.name), child, frozenset(child.extras)))
    assert {name for name, _ in reached} == set(locked), "the lock holds what nothing needs"
    tally("locked packages satisfy each other, none is idle", cases=edges, detail=f"of {len(locked)} packages")


def active(need: Requirement, extra: str = "") -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def is_installed(name: str, version: str) -> bool:
    try:
        return metadata.version(name).partition("+")[0] == version.partition("+")[0]
    except metadata.PackageNotFoundError:
        return False


def test_what_installs_asks_for_hashes() -> None:
    """Every file of the repository that a shell or make runs."""
    names = ["Makefile", ".ci/run", "tests/slurm/cluster", "orchestrator/workspace/Makefile"]
    for name in names:
        text = (ROOT / name).read_text()
        assert not re.search(r"(curl|wget)[^\n]*\|\s*(ba)?sh", text), name
        for line in re.findall(r".*pip install.*", text):
            assert "--no-deps --require-hashes" in line or "--no-index" in line, f"{name}: {line}"
    assert all("$(PIP)" in line for line in (ROOT / "Makefile").read_text().splitlines() if " -r requirements" in line)


def test_documented_commands_ask_for_hashes_and_no_resolver() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in LOCKS)]
    for page in pages:
        for line in re.findall(r"pip install[^`\n]*\n?[^`\n]*-r requirements\S*", page.read_text()):
            assert "--no-deps --require-hashes" in line, f"{page.name}: {line}"


@pytest.fixture(scope="module")
def commit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clone of this checkout's commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("a checkout of git is needed to build the wheel")
    folder = tmp_path_factory.mktemp("clone") / "a checkout"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, folder], check=True)
    return folder


def build_wheel(checkout: Path, umask: int, **environ: str) -> Path:
    """Run `make wheel`, its virtual environment being the one of the tests."""
    shutil.rmtree(checkout / "dist", ignore_errors=True)
    command = ["make", "wheel", "-o", ".venv/.installed-dev", f"BIN={Path(sys.executable).parent}"]
    subprocess.run(command, cwd=checkout, env=os.environ | environ, umask=umask, capture_output=True, check=True)
    (path,) = (checkout / "dist").glob("*.whl")
    return path


@pytest.mark.xdist_group("wheel")
@pytest.mark.slow
def test_two_builds_of_the_wheel_are_the_same_bytes(commit: Path, tmp_path: Path, tally: Tally) -> None:
    """With another umask, time zone and hash seed, in a folder that was used."""
    first = build_wheel(commit, 0o022).read_bytes()
    for stray in ("orchestrator/stray.py", "trainer/__pycache__/x.pyc", "build/lib/trainer/old.py"):
        (commit / stray).parent.mkdir(parents=True, exist_ok=True)
        (commit / stray).write_text("stray")
    second = build_wheel(commit, 0o077, TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="7").read_bytes()
    assert first == second
    tally("builds of the wheel are byte-equal", cases=2, detail=f"sha256 {hashlib.sha256(first).hexdigest()[:16]}")


@pytest.mark.xdist_group("wheel")
@pytest.mark.slow
def test_the_wheel_holds_the_tracked_files_of_the_package(commit: Path) -> None:
    folders = ("orchestrator", "trainer", "models", "sbatch")
    listed = subprocess.run(["git", "ls-files", *folders], cwd=commit, capture_output=True, text=True, check=True)
    wanted = {f"ablatrix/{name}" for name in listed.stdout.split()}
    wanted |= {"ablatrix/__init__.py", "ablatrix/__main__.py", "ablatrix_run.py"}
    with zipfile.ZipFile(build_wheel(commit, 0o022)) as archive:
        infos = archive.infolist()
    assert {info.filename for info in infos if ".dist-info/" not in info.filename} == wanted
    assert {stat.S_IMODE(info.external_attr >> 16) for info in infos} <= {0o644, 0o664, 0o755}


def list_licenses() -> Iterator[tuple[str, str, str]]:
    for line in licenses.PAGE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| package |"):
            name, version, license = (cell.strip() for cell in line.strip("|").split("|"))
            yield name, version, license


def test_the_license_of_everything_locked_is_known_and_allowed(tally: Tally) -> None:
    listed = list(list_licenses())
    locked = [(entry.name, entry.version) for found in licenses.locked().values() for entry in found]
    assert [(name, version) for name, version, _ in listed] == locked, "call `make licenses`"
    for name, _, license in listed:
        assert set(licenses.split_expression(license)) <= licenses.ALLOWED, f"{name}: {license}"
    proprietary = {name for name, _, license in listed if "NVIDIA" in license}
    assert not proprietary & {entry.name for entry in entries(COMMON) + entries("requirements-dev.txt")}
    tally("the license of every locked package is known", cases=len(locked))


@pytest.mark.parametrize("text", ["GNU GPL v3", None])
def test_an_unknown_license_is_an_error(text: str | None) -> None:
    with pytest.raises(ValueError, match="not understood"):
        licenses.find_license("x", {"license": text})
    assert "GPL-3.0-only" not in licenses.ALLOWED


def flip(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


@pytest.mark.parametrize("file", TOKENIZER_FILES)
@pytest.mark.parametrize("damage", [flip, lambda content: content[:-1], lambda content: content + b"x", None])
def test_a_changed_file_of_the_offline_cache_is_refused(
    offline_cache: Path, corpus: Path, tmp_path: Path, file: str, damage: Callable[[bytes], bytes] | None
) -> None:
    """As a job meets it: `load` for text, `open_tokens` for a corpus that is not yet tokenized. None: removed."""
    cache = tmp_path / "cache"
    shutil.copytree(offline_cache, cache, ignore=shutil.ignore_patterns("tokens"))
    path = cache / "tokenizers" / "sample" / file
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    with pytest.raises(OfflineCacheError, match=rf"{file} is .*: run `.* warm-cache"):
        tokenizer.load("sample", cache)
    with pytest.raises(OfflineCacheError, match=rf"{file} is .*: run `.* warm-cache"):
        open_tokens(DataConfig(file_path=str(corpus), tokenizer="sample"), cache)

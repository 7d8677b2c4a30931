"""What many tests share: an offline cache with the embedded tokenizer, and a small corpus of real text."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator import cli
from ablatrix.trainer.data import embedded_sample, warm_cache
from ablatrix.trainer.data.shard_claims import Claims
from ablatrix.trainer.rundir.files import atomic_write
from tests.support.forked_python import ForkedPython
from tests.support.workspace import Workspace

pytest_plugins = ["tests.support.evidence"]

WriteJsonl = Callable[..., Path]
Verb = Callable[..., tuple[int, str, str]]


@functools.cache
def xdist_group(path: Path) -> str:
    """Return the group that a file's tests are marked with, '' for none."""
    found = re.search(r'xdist_group\("([^"]+)"\)', path.read_text(encoding="utf-8"))
    return found[1] if found else ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadgroup` one process runs all tests of a group, in the order in which they were collected.

    pytest-xdist 3.8 itself cannot: it renames tests, which pytest 9.2 does not see.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return xdist_group(config.rootpath / nodeid.partition("::")[0]) or nodeid

    if config.getvalue("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False
    return Groups(config, log)


STARTERS = {"workspace", "work", "command", "trainers", "packed", "train"}  # fixtures that start commands or trainers


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark with `slow` each test that starts commands or trainers, unless it is the one that stands for all of them.

    Where several processes run the tests, those on clusters come first, for they mostly wait, then the other groups.
    """
    for item in items:
        if STARTERS.intersection(getattr(item, "fixturenames", ())) and not item.get_closest_marker("thin"):
            item.add_marker("slow")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _rank(xdist_group(item.path)))


def _rank(group: str) -> int:
    """Return when a group begins: 0 for those on clusters, 1 for other groups, 2 for tests without one."""
    return 2 if not group else 0 if group.startswith(("slurm", "bare cluster")) else 1


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder that all worker processes of this test session (pytest-xdist) share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def one_at_a_time(folder: Path, name: str) -> Iterator[None]:
    """The other worker processes wait until the block is left."""
    with Claims(folder) as claims:
        while not claims.acquire(f"{name}.claim", take_over=True):
            time.sleep(0.1)
        yield


@pytest.fixture(scope="session")
def offline_cache(shared_dir: Path) -> Path:
    """An offline cache that holds the tokenizer `sample`. Read it, or let token caches be added; change nothing."""
    folder = shared_dir / "cache"
    with one_at_a_time(shared_dir, "cache"):
        warm_cache.warm_tokenizer("sample", folder, source=None)
    return folder


@pytest.fixture(scope="session")
def corpus(shared_dir: Path) -> Path:
    """A JSONL file of 60 documents from the standard library, 300 kB: from a few to some thousand tokens each."""
    path = shared_dir / "corpus.jsonl"
    with one_at_a_time(shared_dir, "corpus"):
        if not path.exists():
            small = (record for record in embedded_sample.documents() if len(record["text"]) < 12_000)
            atomic_write(path, "".join(json.dumps(record) + "\n" for record in islice(small, 60)))
    return path


@pytest.fixture
def write_jsonl(tmp_path: Path) -> WriteJsonl:
    """write_jsonl(texts, name="data.jsonl"): one document per text, as a JSONL file in the test's own folder."""

    def write(texts: Iterable[Any], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Verb:
    """verb(*words): the exit code, stdout and stderr of `ablatrix WORDS` in this process."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ablatrix", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err, (words, err)
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Undo how a command that ran in this process has set up our log, which `caplog` would no longer see."""
    logger = logging.getLogger("ablatrix")
    handlers, propagate, level = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def forked_python() -> Iterator[ForkedPython]:
    """A `python` that starts at once; it is forked before the first test leaves traces in this process."""
    forked = ForkedPython()
    yield forked
    forked.stop()


@pytest.fixture
def workspace(tmp_path: Path, offline_cache: Path, corpus: Path, forked_python: ForkedPython) -> Workspace:
    """A user's folder with the embedded tokenizer and a small corpus at hand; its verbs and trainers are forked."""
    return Workspace(tmp_path, corpus, offline_cache, python=forked_python.python)

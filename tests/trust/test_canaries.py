"""Secrets of a user's surroundings, through whole studies: none is in anything that is written or printed."""

import bz2
import gzip
import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest

from tests.slurm.conftest import alone, cluster_problem  # noqa: F401 - a fixture
from tests.support.evidence import Tally
from tests.support.exported import allowed
from tests.support.workspace import Workspace
from tests.trust import canaries

pytestmark = pytest.mark.xdist_group("slurm-2")

TRAINED = """\
# {comment}
name: trained
base:
  data: {{file_path: {corpus}, tokenizer: sample, block_size: 32, test_size: 6}}
  model: {{model_type: gpt-nano, n_layer: 1}}
  trainer: {{max_iters: 8, batch_size: 2, log_interval: 2, eval_interval: 4, eval_tokens: 500, ckpt_interval: 4}}
  callbacks: {{jsonl: true}}
  system: {{cache_dir: {cache}}}
design: [baseline]
slurm: {{time: "00:10:00", mem: 1G}}
"""


class Session:
    """A user's commands, with all that they print."""

    def __init__(self, workspace: Workspace, secrets: dict[str, str]) -> None:
        self.workspace, self.secrets, self.printed = workspace, secrets, ""

    def call(self, *words: object, code: int | None = 0) -> None:
        done = self.workspace.run(*words, code=code)
        self.printed += done.stdout + done.stderr


def whole_studies(session: Session, launcher: str) -> None:
    """Plan, submit, run, fail, look at: a study of our trainer, then one of a command with a cell that breaks."""
    workspace, secrets = session.workspace, session.secrets
    workspace.folder.joinpath("trained.yaml").write_text(
        TRAINED.format(comment=secrets["yaml comment"], corpus=workspace.corpus, cache=workspace.cache)
    )
    study = canaries.write_study(
        workspace, features={"broken": {"mode": "crash"}}, export=[canaries.NAMED], slurm={"time": "00:10:00"}
    )
    refused = workspace.folder / "refused.yaml"
    refused.write_text(f"name: refused\nbase:\n  api_key: {secrets['yaml']}\n")
    for verb in ("plan", "submit"):
        session.call(verb, refused, code=2)
    session.call("submit", study, "--set", f"base.api_key={secrets['argv']}", code=2)
    session.call("plan", study, "--launcher", "sbatch", "--sbatch")
    for file, name in (("trained.yaml", "trained"), (study, "study")):
        session.call("submit", file, "--launcher", launcher, "--no-report", code=None)
        workspace.wait(lambda states: all(state["state"] in ("done", "failed") for state in states.values()), name)
        if launcher == "local":  # a report does not depend on the launcher
            session.call("report", name)
        session.call("show", "baseline", "--study", name)
    session.call("status", "study")
    session.call("diff", "baseline", "broken", "--study", "study")
    session.call("logs", "broken", "--study", "study")
    assert workspace.states("study")["broken"]["state"] == "failed"
    assert "RuntimeError: planted" in session.printed


@pytest.fixture(
    params=["local", pytest.param("sbatch", marks=pytest.mark.slurm), pytest.param("submitit", marks=pytest.mark.slurm)]
)
def launcher(request: pytest.FixtureRequest) -> str:
    if request.param != "local" and cluster_problem():
        pytest.skip(f"{cluster_problem()}: start one with tests/slurm/cluster install && tests/slurm/cluster up")
    return str(request.param)


def test_no_canary_is_written_or_printed(workspace: Workspace, launcher: str, seed: int, tally: Tally) -> None:
    secrets = canaries.make(seed)
    planted = canaries.plant(secrets, workspace)
    session = Session(workspace, secrets)
    whole_studies(session, launcher)
    planted += [workspace.folder / "trained.yaml", workspace.folder / "refused.yaml"]
    found, files = canaries.search(secrets, workspace.folder, planted)
    in_cache, cached = canaries.search(secrets, workspace.cache, [])
    printed = canaries.hits(secrets, session.printed.encode())
    assert not found and not in_cache and not printed
    snapshots = workspace.folder / "out/.snapshots"
    assert not [path for path in snapshots.rglob("*") if path.name in (".env", "id_rsa", "node.pem")]
    assert list(snapshots.glob("*.patch")), "the checkout was dirty"
    _jobs_saw_the_list(workspace, secrets)
    detail = f"{files + cached:,} files and {len(session.printed):,} characters of output: 0 hits"
    tally(f"planted secrets stay where they are ({launcher})", len(secrets), detail)


def _jobs_saw_the_list(workspace: Workspace, secrets: dict[str, str]) -> None:
    """Only variables on the list, with the one that was named, whose value arrived."""
    digests = {hashlib.sha256(secret.encode()).hexdigest(): place for place, secret in secrets.items()}
    looked = list(workspace.folder.glob("out/study/*/seen.json"))
    assert len(looked) == 2
    for path in looked:
        own = ("SRUN_CPUS_PER_TASK", "SRUN_DEBUG", "SUBMITIT_EXECUTOR", "SUBMITIT_FOLDER", canaries.NAMED)
        assert not [name for name in json.loads(path.read_text()) if name not in own and not allowed(name, [])]
        values = json.loads(path.with_name("seen.sha256").read_text())
        assert {name: digests[value] for name, value in values.items() if value in digests} == {
            canaries.NAMED: canaries.NAMED
        }


def test_the_search_finds_what_is_there(tmp_path: Path, seed: int) -> None:
    """In every packing that it claims to open."""
    secrets = canaries.make(seed)
    canary, (place, *_) = secrets["FOO"].encode(), ["FOO"]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("data.pkl", b"x" + gzip.compress(b"") + canary)
    for name, data in {
        "plain": b"a" + canary + b"b",
        "gz": gzip.compress(bz2.compress(canary)),
        "pt": archive.getvalue(),
        "base64": b"ab" + canaries.base64.b64encode(b"user:" + canary) + b"=",
        "utf16": secrets["FOO"].encode("utf-16"),
        secrets["FOO"]: b"",
    }.items():
        (tmp_path / name).write_bytes(data)
    found, files = canaries.search(secrets, tmp_path, [])
    assert files == 6 and found == {(place, str(path)) for path in tmp_path.iterdir()}

"""What of the submitting shell reaches a job: the names, the job script's wall under a real bash, the local runs."""

import json
import os
import random
import string
import subprocess
from pathlib import Path

import pytest

from ablatrix.orchestrator.study import exported_env
from tests.support.evidence import Cases, Tally
from tests.support.exported import allowed
from tests.support.workspace import Workspace
from tests.trust import canaries


def random_environment(rng: random.Random) -> dict[str, str]:
    """Names on the list, near it, and of any kind, with values that a line-wise reader would break at."""
    stems = [
        name.replace("*", "")
        for name in (*exported_env.ALLOWED, *exported_env.OF_THE_NODE)
        if not name.startswith("BASH")
    ]
    ends = ["", "X", "_TOKEN", "_API_KEY", "1", "_CACHE", "_DIR", "_PASSWORD"]
    kinds = [
        lambda: rng.choice(stems) + rng.choice(ends),
        lambda: "".join(rng.choices(string.ascii_uppercase + "_", k=rng.randint(1, 12))),
        lambda: rng.choice(
            ["ALL", "NIL", "NONE", "a.b", "x-y", "1A", "A,ALL", "a b", "BASH_FUNC_f%%", "SBATCH_EXPORT"]
        ),
    ]
    drawn = {rng.choice(kinds)(): rng.choice(["1", "", "a b", "x\ny", "$(touch never)", "é"]) for _ in range(30)}
    outside = ("BASH_ENV", "LD_PRELOAD", "LD_LIBRARY_PATH", "SHELLOPTS", "POSIXLY_CORRECT")  # they change bash itself
    drawn = {name: value for name, value in drawn.items() if name and name not in outside}
    functions = {name: "() { :; }" for name in drawn if name.endswith("%%")}
    return drawn | functions | {"PATH": os.environ["PATH"], "HOME": "/root"}


def test_the_wall_of_a_job_script_leaves_only_the_list(tmp_path: Path, cases: Cases, seed: int, tally: Tally) -> None:
    """Even when the whole environment of the shell comes along, as with sbatch --export=ALL."""
    rng, count, kept = random.Random(seed), cases(25, 1000), 0
    for _ in range(count):
        environ = random_environment(rng)
        named = rng.sample([name for name in environ if exported_env._PATTERN.fullmatch(name)], 2)
        named = [name for name in named if name.upper() not in exported_env._KEYWORDS and not name.startswith("S")]
        script = "\n".join(["set -euo pipefail", *exported_env.wall(named), 'exec env -0 "$@"'])
        done = subprocess.run(["bash", "-c", script], env=environ, cwd=tmp_path, capture_output=True, check=True)
        words = [entry.partition(b"=") for entry in done.stdout.split(b"\0") if entry]
        seen = {os.fsdecode(name): os.fsdecode(value) for name, _, value in words}
        for name in seen:
            # bash hands on what it cannot name itself; sbatch's list never holds it
            assert allowed(name, named) or not name.isidentifier(), (name, named)
        for name in environ:
            if allowed(name, named) and name.isidentifier() and name not in ("_", "SHLVL", "PWD", "OLDPWD"):
                assert seen.get(name) == environ[name] or name in exported_env._NOT_KEPT, (name, named)
        kept += len(seen)
    assert kept and not (tmp_path / "never").exists()
    tally("a job script leaves only the allow-list, whatever environment it gets", count, "bash; 0 others, 0 missing")


def test_the_list_for_sbatch_holds_names_only(cases: Cases, seed: int, tally: Tally) -> None:
    rng, count = random.Random(seed), cases(100, 2000)
    for _ in range(count):
        environ = random_environment(rng)
        for name in exported_env.names(["A*", "N*"], environ):
            assert name.upper() not in ("ALL", "NONE", "NIL")
            assert name.removesuffix("%%").isidentifier() and name in environ
            assert allowed(name, ["A*", "N*"])
            assert not name.startswith(("SLURM", "SBATCH"))
    tally("sbatch --export gets names on the allow-list, never ALL or a value", count, "0 others")


def test_a_function_and_a_named_variable_pass() -> None:
    environ = {"BASH_FUNC_module%%": "() { :; }", "MYLAB_A": "1", "WANDB_API_KEY": "k", "HF_TOKEN": "t", "PATH": "/bin"}
    assert exported_env.names([], environ) == ["BASH_FUNC_module%%", "PATH"]
    assert exported_env.names(["MYLAB_*", "HF_TOKEN"], environ) == ["BASH_FUNC_module%%", "HF_TOKEN", "MYLAB_A", "PATH"]
    assert exported_env.names([], {"HTTPS_PROXY": "http://u:p@h", "CUDA_PROXY": "http://u:p@h", "CUDA_HOME": "/c"}) == [
        "CUDA_HOME"
    ]


@pytest.mark.parametrize("entry", ["ALL", "nil", "*", "A B", "A,ALL", "A=1", "SLURM_JWT", "$(x)", "", "A*B", "é"])
def test_what_cannot_be_named_is_refused(entry: str, workspace: Workspace) -> None:
    study = canaries.write_study(workspace, export=[entry])
    refused = workspace.run("plan", study, code=2)
    assert "study.yaml:" in refused.stderr and "export" in refused.stderr


def test_a_named_variable_that_is_not_set_is_said_before_anything_is_made(workspace: Workspace) -> None:
    study = canaries.write_study(workspace, export=["MYLAB_MISSING", "PATH"])
    refused = workspace.run("submit", study, "--launcher", "local", code=2)
    (line,) = refused.stderr.splitlines()
    assert "study.yaml:" in line and "MYLAB_MISSING is not set in this shell" in line
    assert not (workspace.folder / "out").exists()


def test_local_runs_see_the_list_and_what_is_named(workspace: Workspace, tally: Tally) -> None:
    workspace.environment |= {"MYLAB_A": "1", "MY_PASSWORD": "2", "FOO": "3", "CUDA_HOME": "/c", "SLURM_JOB_ID": "9"}
    study = canaries.write_study(workspace, export=["MYLAB_*"], features={})
    workspace.run("submit", study, "--launcher", "local")
    (seen,) = (json.loads(path.read_text()) for path in workspace.folder.glob("out/study/*/seen.json"))
    foreign = [name for name in seen if not allowed(name, ["MYLAB_*"])]
    assert not foreign and {"MYLAB_A", "CUDA_HOME", "PATH", "HOME"} <= set(seen)
    assert not {"MY_PASSWORD", "FOO", "SLURM_JOB_ID"} & set(seen)
    tally("a local run sees the allow-list and what `export:` names", len(seen), "variables; 0 others")

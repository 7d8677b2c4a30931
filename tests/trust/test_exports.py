"""The variables of the submitting shell that reach a job: by name, by the job script in a real bash, in local runs."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from ablatrix.orchestrator.study import exported_env
from tests.support.evidence import Tally
from tests.support.exported import allowed
from tests.support.workspace import Workspace
from tests.trust import canaries

STEMS = [name.replace("*", "") for name in (*exported_env.ALLOWED, *exported_env.OF_THE_NODE) if "BASH" not in name]
OUTSIDE = ("LD_PRELOAD", "LD_LIBRARY_PATH", "SHELLOPTS")  # they change bash itself
NAMED = ["MYLAB_*", "MY_API_KEY"]
# Names on the list, near it, and of any kind, with values that a line-wise reader would split
ENVIRON = {
    **{f"{stem}{end}": "x\ny" for stem in STEMS for end in ("", "X", "_TOKEN", "_API_KEY", "_DIR", "_PASSWORD")},
    **dict.fromkeys(("FOO", "MY_PASSWORD", "MYLAB_A", "MY_API_KEY", "HTTPS_PROXY", "SBATCH_EXPORT"), "$(touch never)"),
    **dict.fromkeys(("ALL", "NIL", "NONE", "a.b", "x-y", "1A", "A,ALL", "a b"), "é"),
    "BASH_FUNC_f%%": "() { :; }",
    "PATH": os.environ["PATH"],
    "HOME": "/root",
}
ENVIRON = {name: value for name, value in ENVIRON.items() if name and name not in OUTSIDE}


def test_a_job_script_unsets_what_is_not_on_the_list(tmp_path: Path) -> None:
    """Even if the whole environment of the shell is passed, as with sbatch --export=ALL."""
    script = "\n".join(["set -euo pipefail", *exported_env.wall(NAMED), 'exec env -0 "$@"'])
    done = subprocess.run(["bash", "-c", script], env=ENVIRON, cwd=tmp_path, capture_output=True, check=True)
    words = [entry.partition(b"=") for entry in done.stdout.split(b"\0") if entry]
    seen = {os.fsdecode(name): os.fsdecode(value) for name, _, value in words}
    # bash passes on what it cannot name itself; sbatch's list never has it
    assert not [name for name in seen if name.isidentifier() and not allowed(name, NAMED)]
    kept = [name for name in ENVIRON if name.isidentifier() and allowed(name, NAMED)]
    kept = [name for name in kept if name not in ("_", "SHLVL", "PWD", "OLDPWD", *exported_env._NOT_KEPT)]
    assert {name: seen.get(name) for name in kept} == {name: ENVIRON[name] for name in kept}
    assert not (tmp_path / "never").exists()


def test_the_list_for_sbatch_has_names_only() -> None:
    names = exported_env.names(["A*", "N*", *NAMED], ENVIRON)
    assert {"PATH", "CUDA_X", "MYLAB_A", "MY_API_KEY"} <= set(names)
    for name in names:
        assert name.upper() not in ("ALL", "NONE", "NIL") and not name.startswith(("SLURM", "SBATCH"))
        assert name.removesuffix("%%").isidentifier() and allowed(name, ["A*", "N*", *NAMED])


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

"""The Python API against the files and the results that the verbs show."""

from __future__ import annotations

import json
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest

import ablatrix
from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.orchestrator.verbs.plan import Options, make_plan
from tests.support.studies import FEATURES, Plan, write_study
from tests.support.workspace import Workspace


@pytest.fixture
def study(tmp_path: Path) -> ablatrix.Study:
    two = {name: FEATURES[name] for name in ("swiglu", "warmup")}
    write_study(tmp_path / "out/demo", Plan(features=two, effects={"swiglu": -0.2, "warmup": 0.3}, noise=0.01))
    return ablatrix.load("demo", tmp_path / "out")


def test_runs_and_curves_are_those_of_the_files(study: ablatrix.Study) -> None:
    runs, curves = study.runs(), study.curves()
    assert len(runs) == 12 and set(runs["state"]) == {"done"}
    for run in runs.itertuples():
        of_run = curves[curves["run"] == run.run]
        written = pd.read_csv(Path(run.folder) / "loss.csv")
        pd.testing.assert_frame_equal(of_run[written.columns].reset_index(drop=True), written)
        assert set(of_run["cell"]) == {run.cell} and set(of_run["seed"]) == {run.seed}


@pytest.mark.slow
def test_verdicts_and_effects_are_those_of_the_report(study: ablatrix.Study) -> None:
    verdicts, effects = study.verdicts(), study.effects()
    assert verdicts.loc[["baseline", "swiglu", "warmup"], "verdict"].tolist() == ["baseline", "helps", "hurts"]
    means = study.runs().pivot_table(index="seed", columns="cell", values="value")
    assert effects.loc["swiglu", "mean"] == pytest.approx((means["swiglu"] - means["baseline"]).mean())
    assert verdicts.loc["swiglu", "joint_high"] == effects.loc["swiglu", "joint_high"] < 0
    page = unescape(study.report().read_text(encoding="utf-8")).replace("\xa0", " ")
    assert study.results["headline"] in page
    assert "baseline" not in study.effects("flops").index
    with pytest.raises(ValueError, match="choose one of matched, flops, seconds"):
        study.effects("hours")


def test_a_study_that_has_not_run_has_empty_tables(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    make_plan(Options(workspace.write_study(), "local")).create()
    study = ablatrix.load()
    assert set(study.runs()["state"]) == {"planned"} and study.runs()["value"].isna().all()
    assert study.curves().empty and study.effects().empty
    assert set(study.verdicts()["verdict"]) == {"baseline", "no result"} and study.verdicts()["effect"].isna().all()


def test_plan_submit_and_status(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setattr(sys, "executable", workspace.python)
    file = workspace.write_study(extra="seeds: 2\n")
    planned = ablatrix.plan(file, ["trainer.max_iters=20"], "local")
    assert not (workspace.folder / "out").exists()
    study = ablatrix.submit(file, ["trainer.max_iters=20"], "local")
    states = ablatrix.status(study.folder)
    assert sorted(states["id"]) == sorted(planned["run"]) and set(states["state"]) == {"done"}
    assert study.runs().set_index("run")["state"].to_dict() == dict.fromkeys(planned["run"], "done")


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code cells, in order, on a study that is called as its own; stored without outputs."""
    matplotlib.use("Agg")
    write_study(tmp_path / "out/quickstart", Plan(seeds=(1, 2, 3), effects={"swiglu": -0.2}, noise=0.01))
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((code_root() / "docs/notebook.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None
            exec("".join(cell["source"]), names)
    assert names["verdicts"].loc["swiglu", "verdict"] == "helps" and "swiglu" in names["effects"].index
    means = names["curves"].groupby("cell")["val_loss"].min()
    assert len(names["axes"].lines) == len(means) == 7 and names["runs"]["value"].notna().all()


def test_a_job_does_not_load_the_api() -> None:
    command = "import sys, ablatrix.trainer.config; print(*({'pandas', 'ablatrix.orchestrator'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert not shown.stdout.strip()

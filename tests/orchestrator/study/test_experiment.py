"""Experiment files: inheritance, --set, and errors that name file, line, key and the nearest name."""

from pathlib import Path

import pytest

from ablatrix.orchestrator.study import sbatch_options
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.trainer.rundir.errors import AblatrixError

GOOD = """\
name: study
vars: {iters: 200}
base:
  data: {file_path: data/x.jsonl}
  trainer.max_iters: ${iters}
features:
  swiglu: {model.swiglu: true}
  rope: {model: {rope: true}}
"""


def write(folder: Path, text: str, name: str = "e.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(path: Path, sets: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(AblatrixError) as caught:
        load_experiment(path, sets)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def test_nested_and_dotted_keys_mean_the_same(tmp_path: Path) -> None:
    loaded = load_experiment(write(tmp_path, GOOD)).experiment
    assert loaded.base == {"data.file_path": "data/x.jsonl", "trainer.max_iters": 200}
    assert loaded.features == {"swiglu": {"model.swiglu": True}, "rope": {"model.rope": True}}
    assert loaded.seed_list == [1]
    assert loaded.folder == Path("out/study")


def test_all_faults_at_once_with_line_and_nearest_name(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
name: "a/b"
desing: [baseline]
base:
  data: {file_path: x, blok_size: 3}
  system: {seed: 3}
features:
  rope: {}
  cosine: {trainer.use_cosin: true}
  words: yes please
  -dash: {model.rope: true}
seeds: 1.5
slurm: {partition: "a b; rm", tim: "1"}
""",
    )
    found = problems(path)
    for line, words in (
        (1, "name: names have up to 80 letters"),
        (2, "desing: unknown key (did you mean design?)"),
        (4, "base.data.blok_size: unknown key (did you mean data.block_size?)"),
        (5, "base.system.seed: set per run; give `seeds:`"),
        (7, "features.rope: no overrides"),
        (8, "features.cosine.trainer.use_cosin: unknown key (did you mean trainer.use_cosine?)"),
        (9, "features.words: must be a mapping"),
        (10, "features.-dash: names have up to 80 letters"),
        (11, "seeds"),
        (12, "slurm.partition: characters that are not safe"),
        (12, "slurm.tim: unknown key (did you mean time?)"),
    ):
        assert any(problem.startswith(f"{path}:{line}: {words}") for problem in found), (line, words, found)


def test_duplicate_feature_and_mixed_spelling(tmp_path: Path) -> None:
    twice = GOOD + "  swiglu: {model.swiglu: true}\n"
    assert "e.yaml:9: features.swiglu: duplicate key" in problems(write(tmp_path, twice))[0]
    mixed = "name: a\nbase:\n  model.rope: true\n  model: {rope: false}\n"
    assert "e.yaml:4: base.model.rope: duplicate key" in problems(write(tmp_path, mixed))[0]


def test_extends_cycles_and_missing_files(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    assert "extends itself: a.yaml -> b.yaml -> a.yaml" in problems(tmp_path / "a.yaml")[0]
    found = problems(write(tmp_path, "name: x\nextends: nowhere.yaml\n"))
    assert found == [f"{tmp_path / 'e.yaml'}:2: extends: {tmp_path / 'nowhere.yaml'}: no such file"]


def test_set_wins_and_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    loaded = load_experiment(path, ["trainer.learning_rate=5e-4", "slurm.mem=2G", "vars.iters=7", "seeds=[1, 2]"])
    assert loaded.forced == {"trainer.learning_rate": 5e-4}
    assert loaded.experiment.slurm.mem == "2G"
    assert loaded.experiment.base["trainer.max_iters"] == 7
    assert loaded.experiment.seed_list == [1, 2]
    assert "did you mean trainer.max_iters?" in problems(path, ("trainer.max_iter=3",))[0]
    assert "write --set key=value" in problems(path, ("trainer.max_iters",))[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("design: [baselin]", "'baselin' is not one of baseline"),
        ("design: [{factorial: two}]", "{factorial: two}: the most features that are on must be 1 or more"),
        ("cells: {modern: [rop]}", "no feature 'rop' (did you mean rope?)"),
        ("exclude: [[rope, x]]", "no feature 'x'"),
        ("seeds: []", "at least one seed"),
        ("seeds: [1, 1]", "each once"),
        ("seeds: 0", "at least one seed"),
        ("launcher: pbs", "launcher"),
        ("slurm: {time: soon}", "not a Slurm time"),
        ("slurm: {time: '00:00:00'}", "must be more than 0"),
        ("slurm: {mem: lots}", "slurm.mem"),
        ("slurm: {extra: {nodelist: 'a b'}}", "not safe in an sbatch option"),
        ("slurm: {extra: {output: mine}}", "set by Ablatrix itself"),
        ("slurm: {extra: {job_name: mine}}", "set by Ablatrix itself"),
        ("slurm: {time: '00:01:00'}", "is before its start"),
        ("seeds: 100000000", "seeds"),
        ("seeds: [9223372036854775808]", "seeds"),
        ('output: "a\\0b"', "control characters"),
        ("cells: {baseline: [rope]}", "baseline: reserved for a cell of the designs"),
        ("features: [rope]", "features"),
        ("base: 3", "base: must be a mapping"),
    ],
)
def test_faults_of_the_top_level(tmp_path: Path, line: str, words: str) -> None:
    text = GOOD if not line.startswith(("features", "base")) else "name: study\n"
    assert any(words in problem for problem in problems(write(tmp_path, text + line + "\n"))), line


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("30", 30), ("10:30", 11), ("04:00:00", 240), ("1-0", 1440), ("1-12:30", 2190), ("2-00:00:01", 2881), ("0:01", 1)],
)
def test_slurm_times(time: str, minutes: int) -> None:
    assert sbatch_options.minutes(time) == minutes


def test_expression_faults_have_their_place(tmp_path: Path) -> None:
    found = problems(write(tmp_path, "name: x\nbase:\n  trainer.max_iters: ${nope}\n  data.block_size: ${1/0}\n"))
    assert [line.partition(": ")[0] for line in found] == [f"{tmp_path / 'e.yaml'}:3", f"{tmp_path / 'e.yaml'}:4"]

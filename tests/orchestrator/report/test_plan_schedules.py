"""`plan --schedules`: every distinct schedule once, as a table and as a picture in which nothing hides anything."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from ablatrix.orchestrator.report import drawing, lr_schedules
from ablatrix.orchestrator.report.lr_schedules import Schedule
from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.trainer.schedules import learning_rate
from tests.support.workspace import Workspace

STUDY = """\
name: s
base:
  data: {file_path: x.jsonl}
  model: {model_type: gpt-nano}
  trainer: {max_iters: 3000, learning_rate: 5e-4, warmup_steps: 170}
features:
  rope: {model.rope: true}
  swiglu_with_a_name_that_is_much_too_long: {model.swiglu: true}
  cosine: {trainer.use_cosine: true}
  linear: {trainer.schedule: linear}
  inverse_sqrt: {trainer.schedule: inverse_sqrt}
  a_cosine_with_a_name_that_is_much_too_long: {trainer.schedule: cosine, trainer.min_lr_ratio: 0.0}
  wsd: {trainer.schedule: wsd, trainer.decay_steps: 333}
  wsd_linear: {trainer.schedule: wsd, trainer.decay_steps: 333, trainer.decay_shape: linear}
  infinite: {trainer.schedule: infinite, trainer.cooldown_steps: 901, trainer.anneal_steps: 77}
  high: {trainer.learning_rate: 1e-3}
  low: {trainer.learning_rate: 1e-4}
  long: {trainer.max_iters: 5000, trainer.schedule: cosine}
  no_warmup: {trainer.warmup_steps: 0}
design: [baseline, one_at_a_time]
seeds: 2
"""


def planned(folder: Path, text: str = STUDY) -> list[Schedule]:
    path = folder / "s.yaml"
    path.write_text(text)
    return lr_schedules.find_schedules(matrix.runs(load_experiment(path, ()), lambda config: (4096, None)))


def test_equal_schedules_come_once_and_in_order(tmp_path: Path) -> None:
    curves = planned(tmp_path)
    assert curves[0].cells == ("baseline", "rope", "swiglu_with_a_name_that_is_much_too_long")
    assert [c.cells[0] for c in curves[1:4]] == ["cosine", "linear", "inverse_sqrt"]
    assert [c.description.partition(",")[0] for c in curves] == [
        "constant", "cosine", "linear", "inverse_sqrt", "cosine", "wsd", "wsd", "infinite", "constant", "constant",
        "cosine", "constant",
    ]  # fmt: skip


def test_curves_are_the_trainers_rates_with_all_their_corners(tmp_path: Path) -> None:
    curves = {curve.cells[0]: curve for curve in planned(tmp_path)}
    for curve in curves.values():
        assert curve.rates == tuple(learning_rate(step, curve.settings) for step in curve.steps)
        assert (curve.steps[0], curve.steps[-1]) == (1, curve.settings.max_iters)
        # what is drawn between the points is nowhere far from what is done, not even where a square root begins
        steps = range(1, curve.settings.max_iters + 1)
        drawn = np.interp(steps, curve.steps, curve.rates)
        exact = [learning_rate(step, curve.settings) for step in steps]
        assert np.abs(drawn - exact).max() < 0.03 * max(exact)
    assert {170, 3000 - 333} <= set(curves["wsd"].steps)
    assert {170, 170 + 901, 3000 - 77} <= set(curves["infinite"].steps)


def test_more_steps_than_points_and_fewer(tmp_path: Path) -> None:
    for steps in (1, 2, 7, 123_457):
        text = STUDY.split("features:")[0].replace("3000", str(steps)).replace("170", "0") + "design: [baseline]\n"
        (curve,) = planned(tmp_path, text)
        assert curve.steps[-1] == steps
        assert len(curve.steps) == len(set(curve.steps)) <= lr_schedules.POINTS + 10


def texts(canvas: Figure) -> list[Text]:
    return [t for t in canvas.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text()]


@pytest.mark.parametrize("count", [1, 4, 12])
@pytest.mark.parametrize("spread", [False, True], ids=["near", "far apart"])
def test_no_text_hides_another(tmp_path: Path, count: int, spread: bool) -> None:
    text = STUDY.replace("learning_rate: 1e-4", "learning_rate: 1e-7") if spread else STUDY
    found = planned(tmp_path, text)
    curves = sorted(found, key=lambda c: c.cells[0] not in ("low", "baseline"))[:count]
    with drawing.settings():
        canvas = drawing.layout(lr_schedules.figure(curves))
        painter = FigureCanvasAgg(canvas)
        painter.draw()
        boxes = [(t.get_text(), t.get_window_extent(painter.get_renderer())) for t in texts(canvas)]
    for name, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= canvas.bbox.x1 + 1 and box.y1 <= canvas.bbox.y1, name
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        assert not (a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1), f"{one!r} lies on {two!r}"
    shown = {t for t, _ in boxes}
    assert ("learning rate / peak" in shown) is (spread and count > 1)
    assert {"optimizer step"} <= shown


@pytest.mark.parametrize(
    ("names", "most", "expected"),
    [
        (["baseline"], 20, "baseline"),
        (["a", "b", "c"], 20, "a, b, c"),
        (["baseline", "rope", "swiglu"], 20, "baseline + 2 more"),
        (["baseline", "rope", "swiglu"], 22, "baseline, rope, swiglu"),
        (["baseline", "rope", "swiglu", "rmsnorm"], 24, "baseline, rope + 2 more"),
    ],
)
def test_labels_name_as_many_cells_as_fit(names: list[str], most: int, expected: str) -> None:
    assert lr_schedules.join_names(names, most) == expected
    assert len(lr_schedules.join_names([name * 9 for name in names], most)) <= most


def test_the_command_writes_a_picture_and_nothing_else(workspace: Workspace) -> None:
    study = workspace.write_study(iters=200)
    printed = workspace.run("plan", study, "--schedules").stdout
    assert "baseline, swiglu, rmsnorm, rope" in printed
    assert "cosine" in printed and "0.003" in printed
    written = sorted(path for path in (workspace.folder / "out").rglob("*") if path.is_file())
    assert [path.name for path in written] == ["planned_schedules.pdf", "planned_schedules.png"]
    assert all(str(path.relative_to(workspace.folder)) in printed for path in written)
    assert written[0].read_bytes().startswith(b"%PDF") and written[1].read_bytes().startswith(b"\x89PNG")
    assert "no study there" in workspace.run("status", "study", code=2).stderr


def test_a_folder_that_cannot_be_written_is_said(workspace: Workspace) -> None:
    study = workspace.write_study()
    (workspace.folder / "out").write_text("a file is in the way")
    printed = workspace.run("plan", study, "--schedules", code=1).stderr
    assert "cannot write the learning rate plot" in printed

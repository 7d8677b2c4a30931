"""The files of a report: the same from the same inputs, untouched where nothing changed, legible, within bounds."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from matplotlib.text import Text

from ablatrix.orchestrator.report import drawing, figures, methods, notes, output, pdf, tables, wording
from ablatrix.orchestrator.report.build import build, verdict_rows
from ablatrix.orchestrator.report.collect import read_study
from ablatrix.orchestrator.report.record import record_of
from ablatrix.orchestrator.study.dotted import nest
from ablatrix.trainer.config import RunConfig
from tests.support.hostile_names import HOSTILE
from tests.support.reports import analyse_folder, analyse_plan, write_html, write_markdown
from tests.support.studies import FEATURES, Plan, change_record, write_study
from tests.support.waiting import PATIENCE

AGAIN = """
import json, sys
from pathlib import Path
from ablatrix.orchestrator.report.build import build
states = {k: tuple(v) for k, v in json.loads(sys.argv[2]).items()}
build(Path(sys.argv[1]), states)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "report").iterdir())}


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    two = {name: FEATURES[name] for name in ("swiglu", "rope")}
    states = write_study(tmp_path, Plan(seeds=(1, 2), features=two, domains=("a", "b")))
    build(tmp_path, states)
    first = contents(tmp_path)
    shutil.rmtree(tmp_path / "report")
    environ = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "5"}
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", AGAIN, str(tmp_path), json.dumps(states)]
    subprocess.run(command, cwd=root, env=environ, check=True, timeout=PATIENCE)
    second = contents(tmp_path)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_files_are_written_if_something_changed_and_go_away_if_they_are_no_longer_made(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    page, figure, mine = (folder / name for name in ("report.html", "interactions.png", "notes.txt"))
    made: dict[str, bytes | str] = {"report.html": "page", "interactions.png": b"figure"}
    assert output.refresh(folder, "inputs", lambda: made) == (page, figure)
    mine.write_text("a person's own file")
    written = page.stat().st_ino
    assert output.refresh(folder, "inputs", lambda: {}) == (page, figure) and page.stat().st_ino == written
    page.write_text("pa")
    output.refresh(folder, "inputs", lambda: made)
    assert page.read_text() == "page"
    assert output.refresh(folder, "other inputs", lambda: {"report.html": "other page"}) == (page,)
    assert page.read_text() == "other page" and not figure.exists() and mine.exists()


def test_the_state_of_a_run_is_an_input(tmp_path: Path) -> None:
    states = write_study(tmp_path, Plan(seeds=(1, 2), features={"swiglu": FEATURES["swiglu"]}))
    changed = {**states, next(iter(states)): ("failed", "by hand")}
    digests = [read_study(tmp_path, found).digest for found in (states, changed, states)]
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize(
    "plan",
    [
        Plan(features=HOSTILE, seeds=(1, 2)),
        Plan(features={f"feature_{i:02d}": {"trainer.warmup_steps": i} for i in range(1, 16)}, seeds=(1, 2)),
        Plan(effects={"warmup": 3.0, "rope": -0.0004}, fates={("rmsnorm", 1): "diverged", ("cosine", 1): "failed"}),
        Plan(seeds=(1,), fates={(c, 1): "planned" for c in ["baseline", *FEATURES, "all_on"]}),
    ],
    ids=["hostile", "many", "far", "empty"],
)
@pytest.mark.slow
def test_no_text_of_a_figure_is_clipped_or_lost(tmp_path: Path, plan: Plan, width: float) -> None:
    analysis = analyse_plan(tmp_path, plan)
    for figure in figures.build_figures(analysis, ""):
        if figure.forest and width == drawing.NARROW:
            continue  # a table on the page
        with drawing.settings(), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "Glyph .* missing")
            canvas = drawing.layout(figure, width)
            canvas.draw_without_rendering()
        texts = [t for t in canvas.findobj(Text) if t.get_visible() and t.get_text().strip()]
        right, top = canvas.bbox.width, canvas.bbox.height
        for text in texts:
            box = text.get_window_extent()
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= right + 1 and box.y1 <= top + 1
            assert inside, (figure.name, text.get_text(), box)
        said = {text.get_text() for text in texts}
        for name, _ in figure.legend:
            assert any(t == name or t.endswith(name[-15:]) for t in said), (figure.name, name)


def test_latex_is_escaped(tmp_path: Path) -> None:
    text = tables.latex(analyse_plan(tmp_path, Plan(features=HOSTILE, seeds=(1, 2))))
    assert re.search(r"^\\_x & .* & 2 of 2 & ", text, re.MULTILINE)
    assert r"a\$b\$" in text
    assert r"\textless{}script\textgreater{}" in text
    assert "−" not in text
    body = text.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
    assert len(body) == len(HOSTILE) + 2
    assert all(len(re.findall(r"(?<!\\)&", line)) == 5 for line in body)


@pytest.mark.slow
def test_the_page_holds_everything_itself(tmp_path: Path) -> None:
    plan = Plan(features={n: FEATURES[n] for n in ("swiglu", "rope", "warmup")}, rows=5000, max_iters=50_000)
    plan.cells = {"baseline": [], **{n: [n] for n in plan.features}}
    build(tmp_path, write_study(tmp_path, plan))
    page = (tmp_path / "report" / "report.html").read_text()
    assert len(page.encode()) <= 1_000_000
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert set(rules["style-src"].split()) == {digest(s) for s in re.findall(r"<style>(.*?)</style>", page, re.S)}
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    assert set(rules.get("script-src", "").split()) == {digest(s) for s in scripts}
    assert " style=" not in page.replace("\n", " ").split("<main>")[1].split("</main>")[0]
    outside = re.findall(r'(?:src|href|action|data)="([^"]*)"', page)
    assert all(link.startswith(("#", "data:,", "../")) for link in outside)  # `../`: folders of runs
    assert "@import" not in page
    assert "url(" not in page.replace("url(#", "")
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids)), "figures share ids"
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', page)) <= set(ids)


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_methods_and_repeating_say_what_was_done(tmp_path: Path) -> None:
    plan = Plan(fates={("rope", 2): "diverged", ("swiglu", 3): "failed"})
    states = write_study(tmp_path, plan)
    first = next(tmp_path.glob("baseline-seed1-*"))
    (first / "provenance.json").write_text('{"git_commit": "0123456789abcdef", "versions": {"torch": "9.9"}}')
    text = write_markdown(analyse_folder(tmp_path, states)).replace("\\", "")
    assert "7 cells with 3 seeds (1, 2, 3) make 21 runs, of which 20 finished and 1 of those diverged" in text
    assert "peak learning rate 0.0005" in text
    assert "tokenizer sample" in text
    assert "Holm-corrected" in text
    assert "least squares over all runs (value ~ cell + seed)" in text
    assert "commit 0123456789" in text
    assert "torch 9.9" in text
    assert f"python -m ablatrix.trainer --config {first}/config.json --system.work_dir=repeat/{first.name}" in text
    assert text.count("python -m ablatrix.trainer") == 21


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ("with AdamW", "0.9 and 0.95", "no warm-up, constant afterwards")),
        ({"trainer.optimizer": "sgd", "trainer.nesterov": True}, ("SGD", "momentum 0.9 in Nesterov's form")),
        ({"trainer.optimizer": "muon"}, ("Muon (the matrices of the blocks) and AdamW (the rest)", "momentum 0.95")),
        ({"trainer.optimizer": "adafactor"}, ("Adafactor", "updates clipped at 1.0")),
        ({"trainer.use_cosine": True, "trainer.warmup_steps": 7}, ("7 steps of warm-up, cosine decay to 0.1",)),
        ({"trainer.schedule": "linear"}, ("linear decay to 0.1 of the peak",)),
        ({"trainer.schedule": "inverse_sqrt"}, ("inverse square root of the step",)),
        ({"trainer.schedule": "wsd", "trainer.decay_steps": 9}, ("1 − sqrt decay to 0.1 of the peak over the last 9",)),
        ({"trainer.schedule": "infinite"}, ("cool-down to 0.55 of the peak over", "exponential annealing to 0.1")),
    ],
)
def test_methods_name_optimizer_and_schedule(settings: dict[str, object], words: tuple[str, ...]) -> None:
    tree = nest({"data.file_path": "x", **settings})
    written = RunConfig.model_validate(tree).resolved(100).model_dump(mode="json")

    def get(key: str) -> object:
        section, _, name = key.partition(".")
        return written[section][name]

    text = f"with {methods.optimizer(get)}, {methods.schedule(get)}"
    assert all(word in text for word in words), text
    assert "None" not in text


def test_what_the_experiment_is_about_stands_first(tmp_path: Path) -> None:
    states = write_study(tmp_path, Plan(seeds=(1,)))
    shown = {"name": "Gates & <b>norms</b>", "date": "2026-01-31", "hypothesis": "a*b*c `x` <script>alert(1)</script>"}
    change_record(tmp_path / "study.json", info=shown)
    analysis = analyse_folder(tmp_path, states)
    page = write_html(analysis)
    assert page.index("The experiment") < page.index("Run health")
    assert "Gates &amp; &lt;b&gt;norms&lt;/b&gt;, 2026-01-31" in page
    assert "Hypothesis: a*b*c `x` &lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script>alert" not in page
    markdown = write_markdown(analysis)
    assert "Hypothesis: a\\*b\\*c \\`x\\` \\<script\\>alert(1)\\</script\\>" in markdown
    assert markdown.index("## The experiment") < markdown.index("## Run health")
    change_record(tmp_path / "study.json", info={})
    changed = analyse_folder(tmp_path, states)
    assert "The experiment" not in write_html(changed)
    assert changed.study.digest != analysis.study.digest, "the old page would be kept"


def test_early_stop_is_no_failure(tmp_path: Path) -> None:
    states = write_study(tmp_path, Plan(seeds=(1, 2)))
    for run in sorted(tmp_path.glob("rope-seed*")):
        change_record(run / "summary.json", stopped_early=True, iters=480)
    analysis = analyse_folder(tmp_path, states)
    assert "2 runs stopped early, as configured, and count as finished." in notes.notes(analysis)
    (rope,) = [row for row in verdict_rows(analysis) if row.cell == "rope"]
    assert rope.text.runs == "2 of 2" and rope.text.effect != "—"
    assert "no result" not in write_markdown(analysis)


def test_runs_are_linked_and_their_last_samples_stand_side_by_side(tmp_path: Path) -> None:
    states = write_study(tmp_path, Plan(seeds=(1, 2), features={"swiglu": FEATURES["swiglu"]}))
    for run in sorted(tmp_path.glob("*-seed*")):
        text = f"=== iter 10\nearly\n=== iter 20\n<b>late</b> of {run.name}\n"
        (run / "samples.txt").write_text(text)
    analysis = analyse_folder(tmp_path, states)
    page = write_html(analysis)
    links = re.findall(r'<a href="\.\./([^"]+)/">', page)
    assert sorted(set(links)) == sorted(states) and all((tmp_path / link).is_dir() for link in links)
    assert "early" not in page and page.count("after step 20:\n&lt;b&gt;late&lt;/b&gt; of ") == 3
    assert "<h4>swiglu, seed 1</h4>" in page and "swiglu, seed 2" not in page
    markdown = write_markdown(analysis)
    assert f"](../{next(iter(states))}/)" in markdown and "```\nafter step 20:\n<b>late</b>" in markdown


@pytest.mark.slow
def test_the_pdf_is_kept_up_to_date_once_it_is_there(tmp_path: Path) -> None:
    states = write_study(tmp_path, Plan(seeds=(1, 2), features={"swiglu": FEATURES["swiglu"]}))
    path = tmp_path / "report" / "report.pdf"
    build(tmp_path, states, with_pdf=True)
    first = path.read_bytes()
    assert first.count(b"/Type /Page ") == 1 and path.with_name("effects.pdf").exists()
    build(tmp_path, {**states, next(iter(states)): ("failed", "by hand")})
    assert path.exists()
    forty = {f"f{i:02d}": {"trainer.warmup_steps": i + 1} for i in range(65)}
    cells = {"baseline": [], **{name: [name] for name in forty}}
    many = analyse_plan(tmp_path / "many", Plan(features=forty, cells=cells, seeds=(1, 2), rows=8))
    shown = [figure for figure in figures.build_figures(many, "") if figure.name in ("effects", "loss_curves")]
    pages = pdf.write("title", "lead", "subtitle", shown, methods.paragraphs(many))
    assert pages.count(b"/Type /Page ") == 3


def test_the_record_is_json_with_the_numbers_of_the_tables(tmp_path: Path) -> None:
    fates = {("rope", 1): "diverged", ("rope", 2): "diverged"}
    analysis = analyse_plan(tmp_path, Plan(seeds=(1, 2), effects={"swiglu": -0.2}, fates=fates))
    record = json.loads(json.dumps(record_of(analysis), allow_nan=False))
    assert record["headline"] == wording.headline(analysis) and record["warnings"] == notes.notes(analysis)
    cells = {cell["cell"]: cell for cell in record["cells"]}
    rows = verdict_rows(analysis)
    assert [cells[row.cell]["verdict"] for row in rows] == [row.verdict for row in rows]
    effect = cells["swiglu"]["effect"]
    assert effect["joint_low"] < effect["low"] < effect["mean"] < effect["high"] < effect["joint_high"] < 0
    assert effect["at_least"] == effect["joint_high"] and effect["p"] < effect["p_joint"] < 0.05
    assert cells["rope"]["effect"] is None and cells["rope"]["runs"]["diverged"] == 2
    assert record["runs"] == {"planned": 14, "finished": 14, "in_mean": 12, "diverged": 2}

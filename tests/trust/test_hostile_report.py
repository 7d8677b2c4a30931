"""Hostile words wherever a report may have words from: they show, and nothing else comes of them."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatrix.orchestrator.report import document, interactive, markdown, page, plots, tables
from ablatrix.orchestrator.report.analysis import Analysis, analyse
from ablatrix.orchestrator.report.build import build
from ablatrix.orchestrator.report.collect import read_study
from ablatrix.orchestrator.report.content import (
    Code,
    Folded,
    Heading,
    Health,
    Notes,
    Row,
    Section,
    Table,
    Text,
    Verdict,
    Verdicts,
)
from ablatrix.trainer.rundir.console import visible
from tests.support import chromium
from tests.support.chromium import Browser
from tests.support.evidence import Cases, Tally
from tests.support.studies import FEATURES, Plan, write_study
from tests.trust.payloads import ACTING, FORMULAS, HTML, TERMINAL, Skeleton, spoil

WORDS = HTML + TERMINAL + FORMULAS
NUMBERS = ("-0.0421", "-1e-5", "-inf", "+inf", "-0.0", "nan", "-INFINITY", "1e308", "-3", "+2.5", ".5", "-.5E+3")
CELLS = ("baseline", "swiglu", "rope", "all_on")
KEYED = ("val_nll_by_domain", "skipped_documents")  # of summary.json, whose keys are words
States = dict[str, tuple[str, str]]


class Words:
    """Words from a list, each another one: names must differ. neutral: as many that are harmless."""

    def __init__(self, seed: int, words: tuple[str, ...] = WORDS, neutral: bool = False) -> None:
        self.chance, self.neutral, self.used = random.Random(seed), neutral, list[str]()
        # half surrogate pairs do not get as far: a JSON file with one is refused as a whole
        self.words = [word for word in words if not re.search("[\ud800-\udfff]", word)]

    def __call__(self) -> str:
        word = self.chance.choice(self.words)
        self.used.append(f"word{len(self.used)}" if self.neutral else f"{word}{len(self.used)}")
        return self.used[-1]


def plant(folder: Path, words: Words, seed: int, share: float) -> States:
    """A study in which a share of all strings are words: of plan, configurations, summaries, provenance and reasons,
    and the names of cells, features and domains. Those of folders are not."""
    chance = random.Random(seed)
    plan = Plan(seeds=(1, 2), features={name: FEATURES[name] for name in CELLS[1:3]}, rows=12, domains=("web", "code"))
    plan.fates, plan.contexts = {("swiglu", 2): "failed"}, (64, 128)
    states = write_study(folder, plan)
    study = json.loads((folder / "study.json").read_text())
    study["info"] = dict.fromkeys(("name", "date", "description", "hypothesis"), "said")
    names = {name: words() if chance.random() < share else name for name in CELLS}
    study["features"] = {names[name]: overrides for name, overrides in study["features"].items()}
    for run in study["runs"]:
        run |= {"cell": names[run["cell"]], "features": [names[name] for name in run["features"]]}
    (folder / "study.json").write_text(json.dumps(study))
    spoil(folder / "study.json", words, chance, share, kept=("id", "cell", "features"))
    domains = {name: words() if chance.random() < share else name for name in ("web", "code", "too short")}
    for run in study["runs"]:
        _spoil_run(folder / run["id"], words, chance, share, domains)
    return {run: (state, words() if chance.random() < share else why) for run, (state, why) in states.items()}


def _spoil_run(folder: Path, words: Words, chance: random.Random, share: float, domains: dict[str, str]) -> None:
    told = {"git_commit": "c", "git_patch_sha256": "p", "python": "3", "versions": {"torch": "t"}, "platform": "h"}
    (folder / "provenance.json").write_text(json.dumps({**told, "command": ["python", "-m"], "code_snapshot": "s"}))
    for name in ("config.json", "summary.json", "provenance.json"):
        if (folder / name).exists():
            spoil(folder / name, words, chance, share)
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text())
        for key in KEYED:
            summary[key] = {domains[name]: value for name, value in summary[key].items()}
        (folder / "summary.json").write_text(json.dumps(summary))


def texts(analysis: Analysis) -> dict[str, str]:
    """The files of a report that are text: what `build` writes, without waiting for matplotlib."""
    drawn = plots.build_figures(analysis)
    title, subtitle = f"Ablation: {analysis.study.name}", document.subtitle(analysis)
    found = {"summary.csv": tables.summary(analysis), "comparison.csv": tables.comparison(analysis)}
    found |= {"comparison.tex": tables.latex(analysis)}
    for name, more in (("report.html", ""), ("interactive.html", interactive.data(analysis))):
        sections = document.compose(analysis, drawn, more)
        scripts = interactive.scripts() if more else []
        found[name] = page.render(title, subtitle, sections, scripts, interactive.style() if more else "")
    return found | {"report.md": markdown.render(title, subtitle, document.compose(analysis, drawn))}


def made(folder: Path, words: Words, seed: int, share: float) -> dict[str, str]:
    return texts(analyse(read_study(folder, plant(folder, words, seed, share))))


def require_harmless(found: dict[str, str], plain: dict[str, str]) -> None:
    """The files of a report with hostile words against those of the same report with harmless ones in their place."""
    for name, text in found.items():
        assert visible(text) == text, name
        text.encode()
    for name in ("report.html", "interactive.html"):
        page, other = Skeleton(found[name]), Skeleton(plain[name])
        page.require_harmless()
        assert page.shape == other.shape
        assert page.scripts[1:] == other.scripts[1:]  # the first one is the data
        for data in page.scripts[:1]:
            assert "<" not in data and {chart["title"] for chart in json.loads(data)["charts"]}
    for name in ("summary.csv", "comparison.csv"):
        require_plain_cells(found[name], plain[name])
    assert html_of(found["report.md"]) == html_of(plain["report.md"])
    rows, others = (text["comparison.tex"].splitlines() for text in (found, plain))
    assert len(rows) == len(others)
    for row in rows[5:-3]:
        assert row.endswith(r" \\") and len(re.findall(r"(?<!\\)&", row)) == 5 and not re.search(r"(?<!\\)[%#^~]", row)
        assert not row.startswith(("[", "*"))


def html_of(markdown: str) -> list[str]:
    """Markup that would reach the HTML which is made of a Markdown text: outside code, not escaped."""
    outside = re.sub(r"^(`{3,})sh\n.*?^\1$", "", markdown, flags=re.M | re.S)
    return re.findall(r"(?<!\\)(?:\\\\)*[<>\[\]`|]|^#+ ", outside, flags=re.M)


def require_plain_cells(text: str, plain: str) -> None:
    """No cell is a formula under any separator, and what was a number still is."""
    rows, others = (list(csv.reader(io.StringIO(t))) for t in (text, plain))
    assert len(rows) == len(others) and {len(row) for row in rows} == {len(others[0])}
    for row, other in zip(rows, others, strict=True):
        for cell, before in zip(row, other, strict=True):
            for part in re.split(r"[;\t\n]", cell):
                assert not part.startswith(("=", "@")) and (not part.startswith(("+", "-", "\r")) or is_number(part))
            assert not is_number(before) or cell == before


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_every_word_of_a_report_shows_and_does_nothing(tmp_path: Path, cases: Cases, seed: int, tally: Tally) -> None:
    """Each against the same report with harmless words in the same places: the same elements, rows and columns."""
    number, used = cases(8, 150), 0
    for case in range(number):
        share = random.Random(f"{seed} {case}").choice([0.02, 0.1, 0.5, 1.0])
        words = Words(seed * 1000 + case)
        found = made(tmp_path / f"a{case}", words, case, share)
        plain = made(tmp_path / f"b{case}", Words(seed * 1000 + case, neutral=True), case, share)
        require_harmless(found, plain)
        used += len(words.used)
    tally("hostile words in a study show in its report, and nothing else", cases=used, detail=f"{number} reports")


@pytest.mark.parametrize("words", [HTML, TERMINAL, FORMULAS], ids=["HTML", "terminal", "formulas"])
def test_the_files_of_a_report_that_is_all_hostile(tmp_path: Path, words: tuple[str, ...], seed: int) -> None:
    """As `report` writes them, figures included."""
    states = plant(tmp_path, Words(seed, words), seed, 1.0)
    written = {path.name: path.read_bytes() for path in build(tmp_path, states).paths}
    assert {"report.html", "report.md", "summary.csv", "comparison.csv", "comparison.tex"} < written.keys()
    assert all(written[name].startswith(b"%PDF") for name in written if name.endswith(".pdf"))
    Skeleton(written["report.html"].decode()).require_harmless()


# ---- in a browser ----------------------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(chromium.find() is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


def require_quiet(browser: Browser, path: Path, title: str) -> None:
    """Open it, focus and hover over everything: nothing acts, nothing is asked for."""
    browser.open(path, 1280)
    stir = "for (const e of document.querySelectorAll('*')) { e.focus && e.focus(); "
    stir += "for (const n of ['mouseover', 'focus', 'toggle', 'load', 'error']) e.dispatchEvent(new Event(n)); }"
    browser.evaluate(stir)
    browser.call("Runtime.evaluate", expression="new Promise(done => setTimeout(done, 100))", awaitPromise=True)
    assert browser.evaluate("[document.title, typeof window.canary]") == [title, "undefined"]
    assert sent(browser) == [path.as_uri()]
    assert not [e for e in browser.events if e["method"] in ("Page.javascriptDialogOpening", "Page.windowOpen")]


def sent(browser: Browser) -> list[str]:
    """The addresses that were asked for, those left out that the page's policy has kept from being sent."""
    failed = [e["params"] for e in browser.events if e["method"] == "Network.loadingFailed"]
    blocked = {params["requestId"] for params in failed if params.get("blockedReason") == "csp"}
    asked = [e["params"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    urls = [params["request"]["url"] for params in asked if params["requestId"] not in blocked]
    return [url for url in urls if not url.startswith("data:,")]


@pytest.mark.slow
@needs_chromium
def test_a_browser_runs_and_fetches_nothing(
    browser: Browser, tmp_path: Path, cases: Cases, seed: int, tally: Tally
) -> None:
    """By the escaping alone, and by the page's security policy alone."""
    found = made(tmp_path / "study", Words(seed, HTML), seed, 1.0)
    for name in ("report.html", "interactive.html"):
        title = Skeleton(found[name]).title
        for kind, text in (("whole", found[name]), ("open", without_policy(found[name]))):
            path = tmp_path / f"{kind}-{name}"
            path.write_text(text)
            require_quiet(browser, path, title)
    plain = made(tmp_path / "plain", Words(seed, neutral=True), seed, 0.0)["report.html"]
    acted = 0
    raw = [payload for payload in HTML if "http-equiv=refresh" not in payload]  # no policy forbids that one
    for number, payload in enumerate(random.Random(seed).sample(raw, cases(8, len(raw)))):
        path = tmp_path / f"raw{number}.html"
        text = plain.replace("<main>", f"<main>{visible(payload)}", 1)
        path.write_text(text)
        require_quiet(browser, path, "Ablation: planted")
        path.write_text(without_policy(text))
        acted += acts(browser, path)
    assert acted >= cases(1, 15)  # or the payloads are none
    tally("a browser that opens a report runs and fetches nothing", cases=5 + number, detail=f"{acted} would else act")


def acts(browser: Browser, path: Path) -> bool:
    """Does the page do anything?"""
    try:
        require_quiet(browser, path, "Ablation: planted")
    except (AssertionError, RuntimeError):
        return True
    return False


def without_policy(page: str) -> str:
    found, number = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert number == 1
    return found


# ---- the parts -------------------------------------------------------------------------------------------------------

# What people write, what machines write, and every character that acts
written = st.one_of(
    st.text(st.characters(codec=None), max_size=60),
    st.lists(st.sampled_from([*WORDS, *ACTING, *"<>&\"'`\\\n\t\r;=+-@|*_#[](){}~^%$"]), max_size=6).map("".join),
)


@settings(max_examples=300)
@given(written)
def test_any_text_shows_in_the_page_as_it_is(text: str) -> None:
    rendered = page.render(text, text, [Section("x", text, [*of(text), Folded(text, of(text))])])
    plain = page.render("x", "x", [Section("x", "x", [*of("x"), Folded("x", of("x"))])])
    assert Skeleton(rendered).shape == Skeleton(plain).shape and visible(rendered) == rendered
    words = "".join("".join(Skeleton(rendered).words).split())
    assert "".join(visible(text).replace("\N{NO-BREAK SPACE}", " ").split()) in words.replace("\N{NO-BREAK SPACE}", "")


def of(text: str) -> list[Any]:
    """One block of each kind that holds words."""
    return [
        *(Text(text), Heading(text), Notes([text]), Code(text), Health([(text, 1)])),
        Verdicts([Verdict(text, "no claim", text, [text])]),
        Table([text, text], [Row([text, text])], (0,), (1,)),
    ]


def test_cells_of_tables(cases: Cases, tally: Tally) -> None:
    """No text is a formula, under any separator; numbers are left alone, also those written as words."""
    tried = 0

    @settings(max_examples=cases(300, 5000))
    @given(st.one_of(written, st.sampled_from(FORMULAS), st.floats().map(repr), st.integers().map(str)))
    def holds(value: str) -> None:
        nonlocal tried
        tried += 1
        text = tables._csv([{"cell": value, "number": 1}])
        (row,) = list(csv.DictReader(io.StringIO(text)))
        if is_number(value.strip()) and value.isascii() and value.strip(" ") == value and "_" not in value:
            assert row["cell"] == value
        else:
            require_plain_cells(text, text)
            first = unicodedata.normalize("NFKC", row["cell"]).strip()[:1]
            assert first not in ("=", "+", "-", "@") or is_number(row["cell"])
            assert "'" in row["cell"] or row["cell"] == visible(value)

    holds()
    for value in (*NUMBERS, *map(float, NUMBERS), None, 3, -7):
        (cells,) = list(csv.reader(io.StringIO(tables._csv([{"cell": value, "x": 1}]).partition("\n")[2])))
        assert cells[0] == ("" if value is None else str(value))
        tried += 1
    for value in FORMULAS:
        assert tables._csv([{"cell": value, "x": 1}]) != tables._csv([{"cell": "x" + value, "x": 1}]).replace("x", "")
    tally("no cell of a table is a formula, and numbers stay numbers", cases=tried)


@settings(max_examples=300)
@given(written)
def test_any_text_shows_in_markdown_and_latex(text: str) -> None:
    shown = markdown.paragraph(text)
    assert "\n" not in shown and visible(shown) == shown and not html_of(shown)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown) == visible(" ".join(text.split()))
    assert not re.match(r"([-+=]|\d+[.)])", shown)
    code = markdown.render("x", "x", [Section("x", "x", [Code(text)])])
    assert html_of(code) == ["# ", "## "]
    printed = tables.tex(text)
    assert "\n" not in printed and visible(printed) == printed
    left = re.sub(r"\\text\w+\{\}|\\[&%$#_{}]|\{[\[\]*]\}|\$-\$", "", printed)
    assert not re.search(r"[\\&%$#_{}~^\[\]*<>|]", left)

"""Text that others wrote (names, samples, logs, reasons) shows in reports and on terminals, and has no other effect."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.report import tables
from ablatrix.orchestrator.report.build import build
from ablatrix.orchestrator.study.metric import NLL
from ablatrix.orchestrator.terminal.printing import log_text
from ablatrix.trainer.rundir import console
from ablatrix.trainer.rundir.console import visible
from tests.conftest import Verb
from tests.support import chromium
from tests.support.chromium import Browser
from tests.support.evidence import Tally
from tests.support.studies import FEATURES, Plan, write_study

pytestmark = pytest.mark.xdist_group("escaping")  # which share a report

# A payload that is executed sets window.canary or the title, or asks for something at canary.invalid
ACT = "window.canary=1;document.title='canary'"
AWAY = "https://canary.invalid/x"
HTML = (
    f"<script>{ACT}</script>",
    f"<script src={AWAY}></script>",
    f'<img src={AWAY} onerror="{ACT}">',
    f"<svg onload={ACT}><script>{ACT}</script></svg>",
    f"</style></title></pre><script>{ACT}</script>",
    f"</script><script>{ACT}</script>",
    f"--><script>{ACT}</script><!--",
    f'" onmouseover="{ACT}" autofocus onfocus="{ACT}" x="',
    f"' onmouseover='{ACT}' autofocus onfocus='{ACT}' x='",
    f'<a href="javascript:{ACT}" autofocus>x</a>',
    f'<iframe src="javascript:parent.{ACT}"></iframe>',
    f"<link rel=stylesheet href={AWAY}><style>@import '{AWAY}'</style>",
    f"<form action={AWAY}><input autofocus onfocus={ACT}></form>",
    f"&lt;script&gt;{ACT}&lt;/script&gt;",
    f"\\u003cscript\\u003e{ACT}\\u003c/script\\u003e",
    "{{7*7}}{% raw %}${7*7}",
    f"[x](javascript:{ACT})![x]({AWAY})<{AWAY}>",
    f"```\n<script>{ACT}</script>\n```\n\n# h\n| a | b |",
    "$\\input{/etc/passwd}$ \\write18{id} ^^5c %",
)
TERMINAL = (
    "\x1b]0;canary\x07",
    "\x1b]8;;https://canary.invalid\x1b\\link\x1b]8;;\x1b\\",
    "\x1b[2J\x1b[H\x1b[31mred\x1b[8mhidden",
    "\x9b31m\x9d0;canary\x9c",
    "right\rleft\x08\x08\x08\x7f",
    "[bold red]x[/bold red][link=https://canary.invalid]y[/link]",
)
FORMULAS = (
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("https://canary.invalid","x")',
    "+1+cmd",
    "-2+3",
    "@SUM(1+1)",
    "\t=1+1",
    " =1",
)
NUMBERS = ("-0.0421", "-1e-5", "-inf", "+inf", "-0.0", "nan", "1e308", "-3", "+2.5", ".5")
CELLS = ("baseline", "swiglu", "rope", "all_on")
STRUCTURE = ("id", "cell", "features")  # of study.json: where the files are


def spoil(tree: Any, words: Iterator[str], kept: tuple[str, ...] = ()) -> Any:
    """Return a JSON value with another word in the place of each text, those under the keys `kept` excepted."""
    if isinstance(tree, str):
        return next(words)
    if isinstance(tree, list):
        return [spoil(value, words, kept) for value in tree]
    if isinstance(tree, dict):
        return {key: value if key in kept else spoil(value, words, kept) for key, value in tree.items()}
    return tree


def numbered(texts: tuple[str, ...]) -> Iterator[str]:
    """Yield the texts for ever, each made unique: names must differ."""
    return (f"{text}{number}" for number, text in enumerate(itertools.cycle(texts)))


def write_hostile_study(folder: Path, texts: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Write a study whose names and texts are all hostile; return the states of its runs, with hostile reasons."""
    words = numbered(texts)
    plan = Plan(seeds=(1, 2), features={name: FEATURES[name] for name in CELLS[1:3]}, rows=12, domains=("web", "code"))
    plan.fates, plan.contexts = {("swiglu", 2): "failed"}, (64, 128)
    states = write_study(folder, plan)
    study = json.loads((folder / "study.json").read_text())
    names = {name: next(words) for name in (*CELLS, "web", "code", "too short")}
    study["features"] = {names[name]: overrides for name, overrides in study["features"].items()}
    study["info"] = dict.fromkeys(("name", "date", "description", "hypothesis"), "text")
    for run in study["runs"]:
        run |= {"cell": names[run["cell"]], "features": [names[name] for name in run["features"]]}
    (folder / "study.json").write_text(json.dumps(spoil(study, words, STRUCTURE)))
    for run in study["runs"]:
        facts = {"git_commit": "c", "python": "3", "versions": {"torch": "t"}, "command": ["python", "-m"]}
        (folder / run["id"] / "provenance.json").write_text(json.dumps(facts))
        for path in (folder / run["id"]).glob("*.json"):
            record = spoil(json.loads(path.read_text()), words)
            for key in ("val_nll_by_domain", "skipped_documents"):
                if key in record:
                    record[key] = {names[name]: value for name, value in record[key].items()}
            path.write_text(json.dumps(record))
    return {run: (state, next(words)) for run, (state, _) in states.items()}


# ---- reports


class Page(HTMLParser):
    """The elements, scripts and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.within = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, attrs))
        self.within = tag

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        (self.scripts if self.within == "script" else self.words).append(data)

    def require_harmless(self) -> None:
        """Fail on a handler, on anything fetched from elsewhere, on a payload in a script that is not JSON data."""
        for tag, attrs in self.elements:
            assert tag not in ("iframe", "object", "embed", "base", "form", "input", "audio", "video"), tag
            for name, value in attrs:
                assert not name.startswith("on"), (tag, name)
                assert name not in ("srcdoc", "action", "formaction"), (tag, name)
                if name == "src" or "href" in name:
                    assert (value or "").startswith(("data:", "#", "../")), (tag, name, value)
        for script in self.scripts:
            if "canary" in script:
                assert "<" not in script
                assert json.loads(script)


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """File name -> text of the report of a study whose texts are markup."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = build(folder, write_hostile_study(folder, HTML)).paths
    return {path.name: path.read_text() for path in paths if path.suffix in (".html", ".md", ".tex")}


@pytest.mark.slow
def test_no_text_of_a_study_becomes_markup_of_its_page(hostile_report: dict[str, str], tally: Tally) -> None:
    page = Page(hostile_report["report.html"])
    page.require_harmless()
    assert f"<script>{ACT}</script>0" in "".join(page.words)  # the first name, as it stands
    tally("hostile words show in a report and do nothing", len(page.words))


@pytest.mark.slow
def test_no_text_of_a_study_becomes_markup_in_markdown_or_latex(hostile_report: dict[str, str]) -> None:
    markdown = re.sub(r"^(`{3,})sh\n.*?^\1$", "", hostile_report["report.md"], flags=re.M | re.S)
    assert not re.search(r"(?<!\\)<(script|img|svg|a|iframe|b)\b|(?<!\\)\]\(javascript", markdown)
    rows = [line for line in hostile_report["comparison.tex"].splitlines() if line.endswith(r" \\")]
    assert len(rows) == 1 + len(CELLS)
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == 5
        assert not re.search(r"\\(input|write)|(?<!\\)[%#^~]", row.removesuffix(r" \\").replace(r"95\%", ""))


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_is_no_formula_in_a_table(text: str) -> None:
    (row,) = csv.DictReader(io.StringIO(tables._csv([{"cell": text, "number": 1}], NLL)))
    assert row == {"cell": "'" + text, "number": "1"}


@pytest.mark.parametrize("number", [*NUMBERS, *map(float, NUMBERS)])
def test_a_number_stays_a_number_in_a_table(number: object) -> None:
    (row,) = csv.DictReader(io.StringIO(tables._csv([{"cell": number}], NLL)))
    assert row["cell"] == str(number)


@pytest.mark.slow
@pytest.mark.skipif(chromium.find() is None, reason="no chromium here: apt-get install chromium")
def test_a_browser_that_opens_a_report_runs_and_fetches_nothing(
    hostile_report: dict[str, str], tmp_path: Path, tally: Tally
) -> None:
    """By the escaping alone, and by the page's security policy alone."""
    page = hostile_report["report.html"]
    escaped = tmp_path / "report.html"
    escaped.write_text(page)
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert len(policy.findall(page)) == 1
    unprotected, raw = tmp_path / "unprotected.html", tmp_path / "raw.html"
    unprotected.write_text(policy.sub("", page))
    raw.write_text(page.replace("<main>", f"<main>{''.join(HTML[:6])}", 1))
    executed = tmp_path / "executed.html"
    executed.write_text(policy.sub("", raw.read_text()))
    with Browser() as browser:
        for path in (escaped, unprotected, raw):
            assert not canaries(browser, path), path
        assert canaries(browser, executed)  # or the payloads are none
    tally("a browser that opens a report runs and fetches nothing", cases=3)


def canaries(browser: Browser, path: Path) -> list[Any]:
    """Open a page, focus and hover over everything; return what was executed or fetched."""
    browser.open(path, 1280)
    stir = "for (const e of document.querySelectorAll('*')) { e.focus && e.focus(); "
    stir += "for (const n of ['mouseover', 'focus', 'toggle', 'load', 'error']) e.dispatchEvent(new Event(n)); }"
    browser.evaluate(stir)
    browser.call("Runtime.evaluate", expression="new Promise(done => setTimeout(done, 100))", awaitPromise=True)
    failed = [event["params"] for event in browser.events if event["method"] == "Network.loadingFailed"]
    blocked = {params["requestId"] for params in failed if params.get("blockedReason") == "csp"}
    asked = [event["params"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    fetched = [params["request"]["url"] for params in asked if params["requestId"] not in blocked]
    executed = browser.evaluate("document.title === 'canary' || typeof window.canary !== 'undefined'")
    return [url for url in fetched if "canary" in url] + ["executed"] * bool(executed)


# ---- terminals


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Return the folder of a study whose every text, log and event holds control sequences; its name does too."""
    folder = tmp_path / "out" / "\x1b]0;canary\x07"
    states, words = write_hostile_study(folder, (*TERMINAL, *HTML[:3])), numbered(TERMINAL)
    for number, run in enumerate(states):
        event = {"time": time.time(), "host": next(words), "job_id": next(words), "pid": 1, "launcher": next(words)}
        kinds = ["queued", "started", ("failed", "heartbeat", "stopped")[number % 3]]
        lines = [json.dumps({"event": kind, "reason": next(words), "by": next(words), **event}) for kind in kinds]
        (folder / run / "events.jsonl").write_text("\n".join(lines) + "\n")
        (folder / run / "job.out").write_text("".join(f"{next(words)} line\n" for _ in range(20)))
        if number % 2:
            (folder / run / "summary.json").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("terminal", [False, True], ids=["file", "terminal"])
@pytest.mark.slow
def test_no_verb_prints_control_sequences_of_others(
    study: Path, verb: Verb, terminal: bool, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(study.parents[1])
    first, *_, last = [run["id"] for run in json.loads((study / "study.json").read_text())["runs"]]
    calls: list[tuple[tuple[object, ...], int]] = [
        (("status", study), 0),
        (("status", study, "--json"), 0),
        (("show", first, "--study", study), 0),
        (("logs", first, "--study", study), 0),
        (("diff", first, last, "--study", study), 0),
        (("show", "\x1b]0;nobody\x07", "--study", study), 2),
        (("status", "\x9b31mnowhere"), 2),
    ]
    texts = []
    for words, expected in calls if terminal else [(("report", study), 0), *calls]:  # it costs more than all the others
        code, *streams = verb(*words)
        assert code == expected, words
        texts += streams
    for text in texts:
        others = re.sub(r"\x1b\[[0-9;]*m", "", text) if terminal else text  # without the colors of our own
        assert visible(others) == others
    for path in (study / "report").glob("*.[hmct]*"):
        assert visible(path.read_text()) == path.read_text(), path.name
    everything = "".join(texts)
    assert "\\x1b]0;canary\\x07" in everything
    assert "[bold red]x[/bold red]" in everything
    tally("control sequences of others do nothing on the terminal", cases=len(calls), detail="every verb that reads")


def test_a_log_is_shown_without_its_colors_and_bars() -> None:
    log = "\x1b[1;31mred\x1b[0m and \x1b[38:5:1mx\x1b[m\r\n10%\r20%\r100%\n\ttab \x07\n"
    assert log_text(log).splitlines() == ["red and x", "10%", "20%", "100%", "\ttab \\x07"]


def test_text_without_control_characters_is_unchanged() -> None:
    plain = "naïve café 日本語 हिन्दी العربية − — “quoted” \t tab\nline [bold] :bomb:"
    assert visible(plain) == plain


def test_a_trainer_prints_no_control_sequences(capfd: pytest.CaptureFixture[str]) -> None:
    console.start_logging()
    for write in (console.say, console.complain, logging.getLogger("ablatrix.trainer").warning):
        write("\x1b]0;canary\x07")
    out, err = capfd.readouterr()
    assert (out + err).count("\\x1b]0;canary\\x07\n") == 3
    assert "\x1b" not in out + err

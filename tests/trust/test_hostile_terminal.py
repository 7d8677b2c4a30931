"""Control sequences in logs, names and reasons: a terminal shows them, and does nothing else."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ablatrix.orchestrator import cli
from ablatrix.orchestrator.terminal.printing import Terminal, log_text
from ablatrix.trainer.rundir import console
from ablatrix.trainer.rundir.console import visible
from tests.support.evidence import Cases, Tally
from tests.trust.payloads import ACTING, HTML, TERMINAL
from tests.trust.test_hostile_report import Words, plant

OWN = re.compile(r"\x1b\[[0-9;]*m")  # the colours that we write ourselves
Say = Callable[..., str]


@pytest.fixture
def study(tmp_path: Path, seed: int) -> Path:
    """A study whose every word comes from someone who has studied terminals; its folder too."""
    folder = tmp_path / "out" / "\x1b]0;canary\x07"
    states = plant(folder, Words(seed, TERMINAL + HTML[:3]), seed, 1.0)
    words = Words(seed + 1, TERMINAL)
    plan = json.loads((folder / "study.json").read_text())
    plan["created"] = 1.0
    (folder / "study.json").write_text(json.dumps(plan))
    for number, run in enumerate(states):
        place = folder / run
        event = {"time": time.time(), "host": words(), "job_id": words(), "pid": 1, "launcher": words()}
        kinds = ["queued", "started", ("failed", "heartbeat", "stopped")[number % 3]]
        lines = [json.dumps({"event": kind, "reason": words(), "by": words(), **event}) for kind in kinds]
        (place / "events.jsonl").write_text("\n".join(lines) + "\n")
        (place / "summary.json").unlink(missing_ok=True) if number % 2 else None
        log = "".join(f"{words()} line\n" for _ in range(20))
        (place / "job.out").write_bytes(log.encode("utf-8", "replace") + b"\xff\xfe\x1b[\n")
        config = json.loads((place / "config.json").read_text())
        (place / "origins.json").write_text(json.dumps({f"model.{key}": words() for key in config["model"]}))
        (place / "\x1b[31mfile\x07").touch()
    return folder


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Say:
    """say("status", ...): what the command prints, on both streams."""
    monkeypatch.chdir(tmp_path)

    def say(*words: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["orchestrator", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert (ended.value.code or 0) == code and "Traceback" not in err, err
        return out + err

    return say


@pytest.mark.parametrize("terminal", [False, True], ids=["file", "terminal"])
def test_every_verb_shows_what_others_wrote(
    study: Path, say: Say, terminal: bool, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    where = str(study)
    runs = [run["id"] for run in json.loads((study / "study.json").read_text())["runs"]]
    said = [
        *(say("status", where), say("status", where, "--json"), say("report", where)),
        *(say("show", run, "--study", where) for run in runs[:4]),
        *(say("logs", run, "--study", where) for run in runs[:4]),
        say("logs", runs[0], "--study", where, "-n", "0", "--follow"),
        say("diff", runs[0], runs[-1], "--study", where),
        say("show", "\x1b]0;nobody\x07", "--study", where, code=2),
        say("cancel", "\x1b[31mnobody", "--study", where, code=2),
        say("status", "\x9b31mnowhere", code=2),
    ]
    for text in said:
        rest = OWN.sub("", text) if terminal else text
        assert visible(rest) == rest
        assert "https://canary.invalid" not in "".join(re.findall(r"\x1b\]8;[^\x07\x1b]*", text))
    everything = "".join(said)
    assert "\\x1b]0;canary\\x07" in everything
    assert "[bold red]x[/bold red]" in everything and ":bomb: [blink]x" in everything
    tally("control sequences of others do nothing on the terminal", cases=len(said), detail="every verb that reads")


def test_colours_and_progress_bars_of_a_log(study: Path, say: Say) -> None:
    run = json.loads((study / "study.json").read_text())["runs"][0]["id"]
    log = "\x1b[1;31mred\x1b[0m and \x1b[38:5:1mx\x1b[m\r\n10%\r20%\r100%\n\ttab \u202e\n"
    (study / run / "job.out").write_bytes(log.encode())
    assert say("logs", run, "--study", str(study)).splitlines() == ["red and x", "10%", "20%", "100%", "\ttab \\u202e"]


acting = st.lists(
    st.one_of(st.text(st.characters(codec=None), max_size=9), st.sampled_from([*ACTING, *TERMINAL])), max_size=6
).map("".join)


def test_any_text(cases: Cases, tally: Tally) -> None:
    tried = 0

    @settings(max_examples=cases(100, 3000))
    @given(acting)
    def holds(text: str) -> None:
        nonlocal tried
        tried += 1
        shown = visible(text)
        assert visible(shown) == shown and not set(shown) & set(ACTING)
        shown.encode()
        assert shown == text or any(character in text for character in ACTING) or not text.isprintable()
        table = Table(title=Text(text))
        table.add_column(text)
        table.add_row(text, Text(text))
        for width in (20, 200):
            buffer = io.StringIO()
            Terminal(file=buffer, width=width, force_terminal=False).print(Group(table, text, Text(text)), text)
            printed = buffer.getvalue()
            assert visible(printed) == printed
        assert visible(log_text(text)) == log_text(text)

    holds()
    tally("any text shows on the terminal, and does nothing else", cases=tried)


def test_nothing_that_people_write_is_changed() -> None:
    plain = "naïve café ½ 日本語 한국어 ไทย हिन्दी العربية עברית \N{WOMAN}\u200d\N{GIRL} − — “quoted”"
    plain += " \t tab\nline [bold] :bomb: e\u0301\xa0"
    assert visible(plain) == plain


def test_a_trainer_writes_no_control_sequences(capfd: pytest.CaptureFixture[str]) -> None:
    for tell in (console.say, console.complain, console.warn):
        tell("\x1b]0;canary\x07\ud800 \u202e")
    out, err = capfd.readouterr()
    assert (out + err).count("\\x1b]0;canary\\x07\\ud800 \\u202e\n") == 3 and "\x1b" not in out + err

"""Messages about a study: what is sent, to whom, once, and that a receiver that fails changes nothing."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ablatrix.orchestrator.report.stages import Stages
from ablatrix.orchestrator.slurm import helper_jobs
from ablatrix.orchestrator.slurm.sbatch import SbatchLauncher
from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.status.run_state import RunState
from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.orchestrator.study.notify_settings import Notify
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.submit import channels, notifications
from ablatrix.orchestrator.submit.notifications import Notifier
from tests.support import shell_stubs
from tests.support.batches import make_batch
from tests.support.studies import FEATURES, Plan, write_study
from tests.support.webhook import Webhook
from tests.support.workspace import Workspace

NAME = "ABLATRIX_WEBHOOK"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Webhook:
    with Webhook() as hook:
        monkeypatch.setenv(NAME, hook.url)
        yield hook


def make_study(folder: Path, notify: Notify) -> tuple[Study, list[RunState]]:
    """Return a study of two cells and three seeds, of which one run has no result, and the states of its runs."""
    fates = {("rope", 3): "failed"}
    cells: dict[str, list[str]] = {"baseline": [], "rope": ["rope"]}
    write_study(folder, Plan(features={"rope": FEATURES["rope"]}, cells=cells, effects={"rope": -0.4}, fates=fates))
    study = replace(study_dir.load_study(folder), notify=notify)
    states = study_state.collect(study)
    broken = [s for s in states if s.state != "done"]
    failed = [replace(s, state="failed", reason="exit code 1: out of memory", attempt=1) for s in broken]
    return study, [s for s in states if s.state == "done"] + failed


def test_the_end_is_one_message_with_the_result_and_the_failures(hook: Webhook, tmp_path: Path) -> None:
    study, states = make_study(tmp_path / "s", Notify(webhook=f"${NAME}"))
    for _ in range(2):  # the report job, and `submit --wait`
        Notifier(study).send(states, Stages(), ended=True)
    (sent,) = hook.received
    assert (sent["schema"], sent["event"], sent["study"]) == (1, "end", "planted")
    assert sent["runs"] == {"done": 5, "failed": 1}
    assert {cell["cell"]: cell["verdict"] for cell in sent["cells"]}["rope"] == "helps"
    assert sent["headline"] in sent["text"] and "out of memory" in sent["text"]
    assert sent["failed"] == [
        {"run": states[-1].run.id, "state": "failed", "reason": "exit code 1: out of memory"},
    ]
    again = [replace(state, attempt=2) for state in states]
    Notifier(study).send(again, Stages(), ended=True)
    assert len(hook.received) == 2, "a retry ends once more"


def test_failures_and_looks_have_messages_of_their_own(hook: Webhook, tmp_path: Path) -> None:
    study, states = make_study(tmp_path / "s", Notify(webhook=f"${NAME}"))
    notifier = Notifier(study)
    notifier.send(states)
    notifier.send(states, Stages(decided=["look 1 of 3 has ended: rope stopped (helps)"]))
    assert [sent["event"] for sent in hook.received] == ["failed", "look"]
    assert "1 of 6 runs failed" in hook.received[0]["text"]
    assert "rope stopped (helps)" in hook.received[1]["text"]


def test_failures_shortly_after_each_other_are_one_message(
    hook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, states = make_study(tmp_path / "s", Notify(webhook=f"${NAME}"))
    more = [replace(states[0], state="lost", reason="node3 is gone"), *states[1:]]
    Notifier(study).send(states)
    Notifier(study).send(more)
    assert len(hook.received) == 1
    monkeypatch.setattr(notifications, "FAILURES_APART", -1.0)
    Notifier(study).send(more)
    assert [len(sent["failed"]) for sent in hook.received] == [1, 2]


def test_only_the_events_that_are_asked_for(hook: Webhook, tmp_path: Path) -> None:
    study, states = make_study(tmp_path / "s", Notify(webhook=f"${NAME}", events=["failed"]))
    Notifier(study).send(states, Stages(decided=["look 1"]), ended=True)
    assert [sent["event"] for sent in hook.received] == ["failed"]


@pytest.mark.parametrize("answer", [404, 302, 500])
def test_a_message_that_was_refused_is_a_warning_and_can_be_sent_later(
    hook: Webhook, answer: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study, states = make_study(tmp_path / "s", Notify(webhook=f"${NAME}"))
    hook.answer = answer
    notifier = Notifier(study)
    notifier.send(states, ended=True)
    notifier.send(states, ended=True)
    (warning,) = set(caplog.messages)  # pytest may see it at two loggers
    assert str(answer) in warning and "secret-part" not in warning
    hook.answer = 200
    Notifier(study).send(states, ended=True)
    assert [sent["event"] for sent in hook.received] == ["end", "end"]
    assert "secret-part" not in "".join(path.read_text() for path in study.folder.rglob("*.json"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "is not set on"),
        ("file:///etc/passwd", "does not begin with https://"),
        ("http://127.0.0.1:9/secret-part", "cannot be reached"),
        ("http://127.0.0.1:80/secret part", "failed (InvalidURL)"),
    ],
)
def test_addresses_that_cannot_work(
    address: str, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAME, address)
    study, states = make_study(tmp_path / "s", Notify(webhook=f"${NAME}"))
    Notifier(study).send(states, ended=True)
    (warning,) = set(caplog.messages)  # pytest may see it at two loggers
    assert words in warning and "secret" not in warning


def test_slack_and_discord_get_what_they_take() -> None:
    text = "<!channel> & @everyone " + "x" * 3000
    slack, discord = (channels.payload(kind, text, {"text": text}) for kind in ("slack", "discord"))
    assert slack["text"].startswith("&lt;!channel&gt; &amp; ")
    assert len(discord["content"]) <= 2000 and discord["allowed_mentions"] == {"parse": []}
    assert channels.payload("json", text, {"text": text}) == {"text": text}


def test_mail_goes_through_sendmail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shell_stubs.program(
        tmp_path / "bin/sendmail", f'#!/bin/sh\necho "$@" >{tmp_path}/argv\ncat >{tmp_path}/mail\n'
    )
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    study, states = make_study(tmp_path / "s", Notify(mail="me@example.org"))
    Notifier(study).send(states, ended=True)
    assert (tmp_path / "argv").read_text() == "-i -- me@example.org\n"
    mail = (tmp_path / "mail").read_text()
    assert "To: me@example.org\n" in mail
    assert "Subject: planted has ended: 5 done, 1 failed\n" in mail


def test_the_variable_reaches_the_helper_jobs_and_no_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_HOOK", "https://example.org/secret-part")
    batch = make_batch(home, SlurmSettings(), notify=Notify(webhook="$MY_HOOK"))
    runs, report, follow_up = (
        SbatchLauncher().script(batch),
        helper_jobs.script(batch, helper_jobs.REPORT),
        helper_jobs.script(batch, helper_jobs.FOLLOW_UP),
    )
    for script in (report, follow_up):
        (option,) = [line for line in script.splitlines() if line.startswith("#SBATCH --export=")]
        assert "MY_HOOK" in option.partition("=")[2].split(",")
    assert "MY_HOOK" not in runs and "secret-part" not in runs + report + follow_up
    assert "report --notify" in report


def test_slurm_is_asked_to_send_mail(home: Path) -> None:
    batch = make_batch(home, SlurmSettings(), notify=Notify(mail="me@example.org", mail_by="slurm"))
    assert "#SBATCH --mail-type=FAIL\n" in SbatchLauncher().script(batch)
    assert "#SBATCH --mail-type=END,FAIL\n" in helper_jobs.script(batch, helper_jobs.REPORT)
    own = make_batch(home, SlurmSettings(extra={"mail-type": "ALL"}), notify=batch.study.notify)
    assert "#SBATCH --mail-type=ALL\n" in SbatchLauncher().script(own)


def test_a_local_submit_sends_at_its_end(hook: Webhook, workspace: Workspace) -> None:
    """The end comes once; a second submit has nothing to send, and no file holds the address."""
    study = workspace.write_study(extra=f"design: [baseline]\nnotify: {{webhook: ${NAME}}}\n")
    workspace.run("submit", study, "--launcher", "local")
    workspace.run("submit", study, "--launcher", "local")
    (sent,) = hook.received
    assert (sent["event"], sent["runs"]) == ("end", {"done": 1})
    record = json.loads((workspace.folder / "out/study/study.json").read_text())
    assert record["notify"]["webhook"] == f"${NAME}"
    written = [path.read_bytes() for path in (workspace.folder / "out").rglob("*") if path.is_file()]
    assert not [data for data in written if b"secret-part" in data]

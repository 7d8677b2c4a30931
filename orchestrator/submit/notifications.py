"""Send the messages that `notify:` requests: a study has ended, runs have failed, a look has decided.

The report job and the follow-up job send them under Slurm, `submit` elsewhere. A process claims a marker in the study's
folder before it sends a message, so that each message is sent once.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.report import next_stage
from ablatrix.orchestrator.report.stages import Stages
from ablatrix.orchestrator.status import run_state
from ablatrix.orchestrator.terminal import status_table
from ablatrix.trainer.rundir import claims
from ablatrix.trainer.rundir.console import count, visible
from ablatrix.trainer.rundir.errors import AblatrixError

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.store.study_dir import Study
    from ablatrix.orchestrator.study.notify_settings import Event, Notify

SCHEMA = 1  # version of the JSON record; incremented when a field changes its meaning or is removed
SENT = ".notified"  # in the study's folder: one marker per message and recipient
BROKEN = ("failed", "lost")
FAILURES_APART = 600.0  # seconds between two messages about failed runs
MOST_FAILURES = 5  # listed in a message

log = logging.getLogger("ablatrix")


@dataclass(frozen=True)
class Message:
    """A message to send. key: identifies what the message is about, and so its marker."""

    event: Event
    key: str
    title: str
    lines: Sequence[str]
    results: Mapping[str, Any] = field(default_factory=dict)


class Notifier:
    """Sends the messages about one study. A failure is logged as a warning and not retried by this process."""

    def __init__(self, study: Study) -> None:
        self.study, self.settings = study, study.notify
        self._tried: set[str] = set()

    def send(
        self,
        states: Sequence[RunState],
        stages: Stages | None = None,
        *,
        ended: bool = False,
        results: Mapping[str, Any] | None = None,
    ) -> None:
        """Send the messages that are due. ended: True if no run is active and no more will be queued.

        results: those of the report, if one was made from these states.
        """
        if self.settings is None:
            return
        stages = stages or Stages()
        states = next_stage.with_reasons(states, stages)
        for event, key in self._due(states, stages, ended):
            if f"{event}-{key}" in self._tried:
                continue
            self._tried.add(f"{event}-{key}")
            try:
                if event == "end":
                    results = results or _analyze(self.study, states)
                message = _compose(self.study, (event, key), states, stages, results or {})
                self._send_once(message, self.settings, states)
            except (AblatrixError, OSError) as error:
                log.warning("no message was sent about the study: %s", error)

    def _due(self, states: Sequence[RunState], stages: Stages, ended: bool) -> list[tuple[Event, str]]:
        """Return (event, key) of each message that is due; the message about the study's end includes the others."""
        wanted = self.settings.events if self.settings else []
        begun = [_identify(state) for state in states if state.state != "planned"]
        failed = [_identify(state) for state in states if state.state in BROKEN]
        if ended and begun and "end" in wanted:
            return [("end", _digest(begun))]
        found: list[tuple[Event, str]] = []
        if stages.decided and "look" in wanted:
            found.append(("look", _digest(stages.decided)))
        if failed and "failed" in wanted and (ended or not self._has_just_failed()):
            found.append(("failed", _digest(failed)))
        return found

    def _has_just_failed(self) -> bool:
        """True if a message about failed runs was sent recently: the next one will list the new failures too."""
        with contextlib.suppress(OSError):
            times = [path.stat().st_mtime for path in (self.study.folder / SENT).glob("failed-*")]
            return bool(times) and time.time() - max(times) < FAILURES_APART
        return False

    def _send_once(self, message: Message, settings: Notify, states: Sequence[RunState]) -> None:
        """Send a message to each recipient that has not received it."""
        from ablatrix.orchestrator.submit import channels  # loads HTTP and TLS, which most studies do not need

        text = visible("\n".join((message.title, *message.lines)))
        if settings.variable:
            address = os.environ.get(settings.variable, "")
            record = _record(self.study, message, text, states)
            with self._claimed(message, "webhook") as ours:
                if ours and not address:
                    raise channels.NotSentError(f"{settings.variable} is not set on {socket.gethostname()}")
                if ours:
                    channels.send_webhook(address, settings.kind, text, record)
        if settings.mail and settings.mail_by == "sendmail":
            with self._claimed(message, "mail") as ours:
                if ours:
                    channels.send_mail(settings.mail, visible(message.title), text)

    @contextlib.contextmanager
    def _claimed(self, message: Message, receiver: str) -> Any:
        """Claim a message to a recipient; yield False if another process has it. A failure is logged, not raised.

        The claim of a message that was not accepted is released, so that another process can send it.
        """
        from ablatrix.orchestrator.submit import channels

        folder, name = self.study.folder / SENT, f"{message.event}-{message.key}-{receiver}"
        try:
            yield claims.take(folder, name)
        except (AblatrixError, OSError) as error:
            log.warning("notify: %s; the study is not affected", error)
            if isinstance(error, channels.NotSentError):
                with contextlib.suppress(OSError):
                    (folder / name).rmdir()


def _identify(state: RunState) -> tuple[str, int, float]:
    """Return what changes when a run is rerun or retried; another host may see its state late."""
    return state.run.id, state.attempt, state.uses[0].start if state.uses else 0.0


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(repr(sorted(values)).encode()).hexdigest()[:12]


def _compose(
    study: Study, due: tuple[Event, str], states: Sequence[RunState], stages: Stages, results: Mapping[str, Any]
) -> Message:
    """Return a message. due: its event and key; results: the report's, for a study that has ended."""
    event, key = due
    failed = [f"{state.run.id}: {state.state}: {state.reason}" for state in states if state.state in BROKEN]
    lines = failed[:MOST_FAILURES]
    lines += [f"and {len(failed) - MOST_FAILURES} more"] if len(failed) > MOST_FAILURES else []
    if event == "failed":
        return Message(event, key, f"{study.name}: {len(failed)} of {count(len(states), 'run')} failed", lines)
    if event == "look":
        return Message(event, key, f"{study.name}: {stages.decided[-1]}", stages.decided[:-1])
    title = f"{study.name} has ended: {status_table.describe_counts(states)}"
    where = f"{socket.gethostname()}:{study.folder.resolve()}"
    return Message(event, key, title, [results["headline"], *stages.decided, *lines, where], results)


def _analyze(study: Study, states: Sequence[RunState]) -> dict[str, Any]:
    """Return the headline of the report and the verdicts."""
    from ablatrix.orchestrator.report import collect, wording
    from ablatrix.orchestrator.report.looks import analyze

    found = analyze(collect.of_study(study, run_state.reasons(states)))
    cells = [{"cell": name, "verdict": str(cell.verdict)} for name, cell, _ in wording.every_cell(found)]
    return {"headline": wording.headline(found), "cells": cells}


def _record(study: Study, message: Message, text: str, states: Sequence[RunState]) -> dict[str, Any]:
    """Return what a webhook of kind `json` receives; docs/automation.md describes the fields."""
    failed = [
        {"run": state.run.id, "state": state.state, "reason": state.reason} for state in states if state.state in BROKEN
    ]
    return {
        "schema": SCHEMA,
        "event": message.event,
        "study": study.name,
        "folder": str(study.folder.resolve()),
        "host": socket.gethostname(),
        "text": text,
        "runs": status_table.count_states(states),
        "failed": failed,
        **message.results,
    }


def is_over(states: Sequence[RunState], stages: Stages) -> bool:
    """True if no run is active and results will not lead to more runs."""
    return not any(state.active for state in states) and not stages.due and not stages.waiting

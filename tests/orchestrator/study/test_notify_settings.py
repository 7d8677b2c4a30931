"""The `notify:` section: what it takes, and that no address of a webhook is written down."""

from pathlib import Path

import pytest

from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.notify_settings import Notify
from ablatrix.trainer.rundir.errors import UserError
from tests.support.plans import write_experiment


def load(folder: Path, notify: str) -> Notify | None:
    return load_experiment(write_experiment(folder, f"notify: {notify}\n"), []).experiment.notify


def test_a_webhook_is_the_name_of_a_variable(tmp_path: Path) -> None:
    found = load(tmp_path, "{webhook: $ABLATRIX_WEBHOOK, kind: slack, events: [end]}")
    assert found == Notify(webhook="$ABLATRIX_WEBHOOK", kind="slack", events=["end"])
    assert found is not None and found.exports == ["ABLATRIX_WEBHOOK"]


@pytest.mark.parametrize(
    ("notify", "words"),
    [
        (
            "{webhook: https://hooks.slack.com/services/T0/B0/XXXXXXXXXXXXXXXXXXXXXXXX}",
            "webhook: $ABLATRIX_WEBHOOK",
        ),
        ("{webhook: https://example.org/hook/1}", "its name says that it is a secret"),
        ('{webhook: "${env:MY_WEBHOOK}"}', "would copy a secret out of your environment"),
        ("{webhook: $ABLATRIX_HOOK}", "ABLATRIX_HOOK is passed to every run"),
        ("{webhook: $SLURM_HOOK}", "reserved for Slurm"),
        ("{mail: me}", "must be one address"),
        ("{mail: -oQ/tmp@example.org}", "must be one address"),
        ("{kind: slack}", "give a `webhook:` or an address"),
        ("{mail: me@example.org, kind: slack}", "there is no `webhook:`"),
        ("{webhook: $MY_WEBHOOK, events: [started]}", "events"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_write(tmp_path: Path, notify: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        load(tmp_path, notify)
    assert words in str(refused.value)
    assert "XXXX" not in str(refused.value) and "example.org/hook" not in str(refused.value)


def test_slurm_sends_mail_only_if_asked_to() -> None:
    mail = Notify(mail="me@example.org")
    assert mail.mail_options(of_runs=False) == {}
    by_slurm = Notify(mail="me@example.org", mail_by="slurm")
    assert by_slurm.mail_options(of_runs=False) == {"mail-user": "me@example.org", "mail-type": "END,FAIL"}
    assert by_slurm.mail_options(of_runs=True)["mail-type"] == "FAIL"
    assert Notify(mail="me@example.org", mail_by="slurm", events=["end"]).mail_options(of_runs=True) == {}

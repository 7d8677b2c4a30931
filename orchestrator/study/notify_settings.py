"""The `notify:` section of an experiment file: where to send messages, and about what.

The URL of a webhook is a secret, so the file names a shell variable that contains it.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ablatrix.orchestrator.study import exported_env
from ablatrix.orchestrator.study.literals import Text

Event = Literal["end", "failed", "look"]
Kind = Literal["slack", "discord", "json"]
EVENTS: tuple[Event, ...] = ("end", "failed", "look")
_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_ADDRESS = re.compile(r"[A-Za-z0-9][^\s@,;<>]*@[^\s@,;<>]+")


def _as_variable(text: str) -> str:
    """Return `$NAME`. Raise ValueError for a URL itself, or for a variable that the runs would receive too."""
    found = _VARIABLE.fullmatch(text)
    if not found:
        raise ValueError("give the shell variable that holds the address, as in `webhook: $ABLATRIX_WEBHOOK`")
    name = exported_env.checked(found[1])
    if exported_env.is_allowed(name):
        raise ValueError(f"{name} is passed to every run; rename the variable to ABLATRIX_WEBHOOK")
    return f"${name}"


def _as_address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError("must be one address, such as me@example.org")
    return text


class Notify(BaseModel):
    """Send a message when a study ends, a run fails, or a look decides."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    webhook: Annotated[Text, AfterValidator(_as_variable)] | None = Field(
        None, description="the shell variable that contains the URL: $ABLATRIX_WEBHOOK"
    )
    kind: Kind | None = Field(None, description="format of the webhook; default: inferred from its host, else json")
    mail: Annotated[Text, AfterValidator(_as_address)] | None = Field(None, description="address to send mail to")
    mail_by: Literal["sendmail", "slurm"] = Field("sendmail", description="the program that sends the mail")
    events: list[Event] = Field(list(EVENTS), min_length=1, description="events to send messages about")

    @model_validator(mode="after")
    def _require_receiver(self) -> Self:
        if self.webhook is None and self.mail is None:
            raise ValueError("give a `webhook:` or an address for `mail:`")
        if self.webhook is None and self.kind is not None:
            raise ValueError("`kind:` is the format of a webhook, but there is no `webhook:`")
        return self

    @property
    def variable(self) -> str:
        """The name of the variable that contains the webhook's URL, '' without a webhook."""
        return (self.webhook or "").removeprefix("$")

    @property
    def exports(self) -> list[str]:
        """Variables passed to jobs that send messages, but not to runs."""
        return [self.variable] if self.variable else []

    def mail_options(self, *, of_runs: bool) -> dict[str, str | int | bool]:
        """Return the sbatch options that make Slurm send the mail; {} unless `mail_by: slurm`."""
        event: Event = "failed" if of_runs else "end"
        if self.mail is None or self.mail_by != "slurm" or event not in self.events:
            return {}
        return {"mail-user": self.mail, "mail-type": "FAIL" if of_runs else "END,FAIL"}

"""Send messages through a webhook (Slack, Discord, or any that accepts JSON) or by email."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit

from ablatrix.trainer.rundir.errors import RunError

TIMEOUT = 10.0  # seconds
LONGEST = 1900  # characters; Discord's limit is 2,000
HOSTS = {
    "hooks.slack.com": "slack",
    "hooks.slack-gov.com": "slack",
    "discord.com": "discord",
    "discordapp.com": "discord",
}
MAIL_PROGRAMS = f"{os.defpath}:/usr/sbin:/usr/lib"


class NotSentError(RunError):
    """The message was not accepted and may be sent again. The text never contains the webhook's URL, a secret."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuse redirects: a redirected POST would become a GET without the message and look successful."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def send_webhook(address: str, kind: str | None, text: str, record: Mapping[str, Any]) -> None:
    """Post a message to a webhook. kind: slack, discord or json; by default inferred from the host.

    Raises NotSentError if the message was not accepted, RunError if that is unknown.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NotSentError("the webhook's address does not begin with https://")
    body = payload(kind or HOSTS.get(parts.hostname.removeprefix("ptb."), "json"), text, record)
    headers = {"Content-Type": "application/json", "User-Agent": "ablatrix"}  # Discord rejects Python's default
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT) as answer:
            answer.read(1)
    except urllib.error.HTTPError as error:
        raise NotSentError(f"the webhook answered {error.code} ({error.reason})") from None
    except urllib.error.URLError as error:
        raise NotSentError(f"the webhook cannot be reached from this host ({error.reason})") from None
    except TimeoutError:
        raise RunError(f"the webhook did not answer within {TIMEOUT:.0f} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RunError(f"the webhook failed ({type(error).__name__})") from None  # its text may contain the URL


def payload(kind: str, text: str, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the JSON object that a webhook of this kind expects.

    Slack: https://api.slack.com/messaging/webhooks; Discord: https://discord.com/developers/docs/resources/webhook.
    """
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    if kind == "slack":
        return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    if kind == "discord":
        return {"content": text, "allowed_mentions": {"parse": []}}
    return record


def send_mail(address: str, subject: str, text: str) -> None:
    """Send an email with sendmail. Raises NotSentError if it was not sent, RunError if that is unknown."""
    program = shutil.which("sendmail") or shutil.which("sendmail", path=MAIL_PROGRAMS)
    if program is None:
        raise NotSentError("sendmail is not installed on this host; set notify.mail_by: slurm")
    message = EmailMessage()
    message["To"], message["Subject"] = address, subject
    message.set_content(text + "\n")
    try:
        done = subprocess.run(
            [program, "-i", "--", address], input=message.as_bytes(), capture_output=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"{program} did not end within {TIMEOUT:.0f} s") from None
    except OSError as error:
        raise NotSentError(f"{program}: {error.strerror}") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise NotSentError(f"{program} failed (exit code {done.returncode}){f': {words}' if words else ''}")

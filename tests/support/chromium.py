"""Drive headless Chromium over its debugging pipe, without an extra package: sizes, media, requests, screenshots."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Elements that extend past the right edge of the window, unless an ancestor scrolls or hides them
OVERFLOWING = """
(() => {
  const wide = document.documentElement.clientWidth, found = [];
  for (const element of document.querySelectorAll('body *')) {
    const box = element.getBoundingClientRect();
    if (!box.width || (box.right <= wide + 1 && box.left >= -1)) continue;
    let around = element.parentElement, excused = false;
    for (; around && around !== document.body; around = around.parentElement)
      if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(around).overflowX)) { excused = true; break; }
    if (!excused) found.push(element.tagName + '.' + (element.getAttribute('class') || '') + ' '
      + (element.textContent || '').slice(0, 40) + ' ' + Math.round(box.left) + '..' + Math.round(box.right));
  }
  return found;
})()
"""
SCROLLED = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def find() -> str | None:
    """Return the path of Chromium, None if it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page in one browser, used as a context manager."""

    def __init__(self) -> None:
        binary = find()
        if binary is None:
            raise FileNotFoundError("chromium")
        self.profile = tempfile.mkdtemp()
        to_browser, self.write_end = os.pipe()
        self.read_end, from_browser = os.pipe()

        # Chromium reads commands from descriptor 3 and answers on 4
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        words = ["bash", "-c", command, binary, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(
            words,
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.stream = os.fdopen(self.read_end, "rb", buffering=0)
        self.buffer = b""
        self.number = 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in target if t["type"] == "page")
        self.session: str | None = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    session: str | None = None

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.stream.close()
        os.close(self.write_end)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its answer; events that arrive meanwhile are kept in `events`."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            chunk = self.stream.read(65536)
            if not chunk:
                raise EOFError("the browser is gone")
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path, width: int, dark: bool = False) -> None:
        """Load a file at a window width, and open folded parts."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self._next()
        self.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["text"])
        return result["result"].get("value")

    def requests(self) -> list[str]:
        """Return the URLs requested since the page was opened."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Return what the browser logged: blocked content, errors."""
        logged = [e["params"]["entry"]["text"] for e in self.events if e["method"] == "Log.entryAdded"]
        thrown = [
            e["params"]["exceptionDetails"]["text"] for e in self.events if e["method"] == "Runtime.exceptionThrown"
        ]
        return logged + thrown

    def screenshot(self, path: Path) -> None:
        """Write a screenshot of the whole page as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

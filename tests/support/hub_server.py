"""A small Hugging Face Hub on loopback, with enough of the file-resolve protocol for the real client.

HEAD and GET /[datasets/]{owner}/{name}/resolve/{revision}/{file} with ETag, X-Repo-Commit, Content-Length and ranges,
and GET /api/[models|datasets]/{owner}/{name}[/revision/{revision}]. Faults can be enabled per file.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PATH = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(/revision/[^/]+)?")


class HubServer:
    """`with HubServer({"owner/name": {"vocab.json": b"..."}}) as hub: ... hub.url`. Data sets: "datasets/owner/name".

    faults: file -> "wrong hash" | "truncated" | a status such as 503. requests: (method, path) of each answered one.
    large: files whose ETag is their SHA-256, as for LFS files; for others it is git's blob hash.
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]], large: tuple[str, ...] = ()) -> None:
        self.repositories, self.large = repositories, large
        self.faults: dict[str, str | int] = {}
        self.requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening; further connections are refused."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def etag(self, file: str, content: bytes) -> str:
        """Return the ETag that the real Hub would send."""
        if file in self.large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""

    def answer(self, send_body: bool) -> None:
        self.hub.requests.append((self.command, self.path))
        path = self.path.partition("?")[0]
        if match := API.fullmatch(path):
            self.describe(("datasets/" if match[1] == "datasets" else "") + match[2])
            return
        match = PATH.fullmatch(path)
        files = self.hub.repositories.get((match[1] or "") + match[2]) if match else None
        if match is None or files is None:
            self.fail(404, "RepoNotFound")
        elif match[3] not in ("main", COMMIT):
            self.fail(404, "RevisionNotFound")
        elif match[4] not in files:
            self.fail(404, "EntryNotFound")
        else:
            self.send_file(match[4], files[match[4]], send_body)

    def describe(self, repo: str) -> None:
        files = self.hub.repositories.get(repo)
        if files is None:
            self.fail(404, "RepoNotFound")
            return
        siblings = [{"rfilename": name} for name in sorted(files)]
        self.send(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode(), {})

    def fail(self, status: int, code: str) -> None:
        self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": code, "X-Repo-Commit": COMMIT})

    def send_file(self, name: str, content: bytes, send_body: bool) -> None:
        fault = self.hub.faults.get(name)
        if isinstance(fault, int):
            self.fail(fault, "ServerError")
            return
        headers = {"ETag": f'"{self.hub.etag(name, content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if fault == "wrong hash":
            content = content[:-1] + bytes([content[-1] ^ 1])
        status, begin = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, begin = 206, int(match[1])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self.send(status, content[begin:], headers, send_body, cut=fault == "truncated")

    def send(
        self, status: int, body: bytes, headers: dict[str, str], send_body: bool = True, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if send_body and self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = self.close_connection or cut

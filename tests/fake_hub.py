"""A Hugging Face hub on the loopback interface, with faults on request; the fixtures `hub`, `server` and `home`.

It is a pytest plugin (see conftest.py), so these fixtures are available in every test.
"""

from __future__ import annotations

import hashlib
import io
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from torch import Tensor

from avarc_cli.zoo import hub as hub_module

COMMIT, OLD_COMMIT = "c0ffee" + "0" * 34, "01d" + "0" * 37
VAR, CCA = "FoundationVision/var", "ChenDRAG/CCA_VAR"

Rule = Callable[["Handler"], object]


def weights(seed: int, size: int = 100_000) -> tuple[bytes, dict[str, Tensor]]:
    """A checkpoint as torch writes it: (bytes, tensors)."""
    tensors = {"w": torch.randn(size, generator=torch.Generator().manual_seed(seed)), "b": torch.arange(3)}
    file = io.BytesIO()
    torch.save({"trainer": {"var_wo_ddp": tensors}, "epoch": seed}, file)
    return file.getvalue(), tensors


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Request:
    """A request that the hub received."""

    command: str
    path: str
    headers: Message  # names are not case-sensitive


class Hub:
    """The hub's files and the requests it received, with rules that override its answers.

    A rule is called with each request before the hub answers; a rule that returns a true value has answered it.
    """

    def __init__(self, url: str, cdn_url: str) -> None:
        self.url, self.cdn_url = url, cdn_url
        self.files: dict[tuple[str, str], bytes] = {}  # (repository, file name) -> content
        self.mirrored: dict[str, bytes] = {}  # file name -> content, of the folder that AVARC_MIRROR may name
        self.requests: list[Request] = []
        self.rules: list[Rule] = []

    def rule(self, answer: Rule) -> Rule:
        """Add a rule; also a decorator."""
        self.rules.append(answer)
        return answer

    def seen(self, method: str = "GET") -> list[Request]:
        return [request for request in self.requests if request.command == method]

    def answer(self, request: Handler) -> None:
        if request.path.startswith("/api/"):  # huggingface_hub may ask for facts about the client, once per process
            request.reply(404)
            return
        self.requests.append(Request(request.command, request.path, request.headers))
        if any(rule(request) for rule in list(self.rules)):
            return
        if request.path.startswith("/mirror/"):
            content = self.mirrored.get(request.path.removeprefix("/mirror/"))
            request.reply(404) if content is None else self._send(request, content)
        else:
            (self._blob if request.path.startswith("/cdn/") else self._resolve)(request)

    def _resolve(self, request: Handler) -> bool:
        repo, _, rest = unquote(request.path)[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repo not in {known for known, _ in self.files}:
            return request.reply(401, {"X-Error-Code": "RepoNotFound"})
        if revision not in {"main", "v1", COMMIT, OLD_COMMIT}:
            return request.reply(404, {"X-Error-Code": "RevisionNotFound"})
        if (repo, name) not in self.files:
            return request.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = self.files[repo, name]
        headers = {
            "X-Repo-Commit": OLD_COMMIT if revision in {"v1", OLD_COMMIT} else COMMIT,
            "X-Linked-Etag": f'"{sha256(content)}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.cdn_url}/cdn/{repo}/{name}",
        }
        return request.reply(302, headers)

    def _blob(self, request: Handler) -> bool:
        repo, name = request.path.removeprefix("/cdn/").split("/", 2)[:2], request.path.split("/", 4)[4]
        return self._send(request, self.files["/".join(repo), name])

    def _send(self, request: Handler, content: bytes) -> bool:
        begin = int((request.headers.get("Range") or "bytes=0-")[6:-1])
        if begin >= len(content):
            return request.reply(416, {"Content-Range": f"bytes */{len(content)}"})
        if "Range" not in request.headers:
            return request.reply(200, {}, content)
        span = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        return request.reply(206, {"Content-Range": span}, content[begin:])


class Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is not an error."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.hub.answer(self)

    do_HEAD = do_GET

    @property
    def is_blob(self) -> bool:
        """Whether this asks for a file's content, rather than for its location."""
        return self.command == "GET" and self.path.startswith(("/cdn/", "/mirror/"))

    def reply(
        self,
        status: int,
        headers: Mapping[str, str | None] | None = None,
        body: bytes = b"",
        send: bytes | None = None,
    ) -> bool:
        """Answer. Content-Length is that of `body` unless given (None omits it); `send` replaces what is sent."""
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if send is None else send)
        if send is not None or headers["Content-Length"] is None:
            self.close_connection = True
        return True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[tuple[Server, str]]:
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Hub]:
    """A hub with some of the published files; as on the real one, their content is on another host."""

    with ExitStack() as stack:
        first, url = stack.enter_context(serving())
        second, cdn_url = stack.enter_context(serving())
        first.hub = second.hub = hub = Hub(url, cdn_url)
        hub.files = {(VAR, "var_d16.pth"): weights(16)[0], (VAR, "vae_ch160v4096z32.pth"): weights(1, 1000)[0]}
        hub.files[CCA, "CCA_VAR_Guidance_Free/VAR_d16_CCA.pth"] = weights(17)[0]
        yield hub


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new user's folders: no registered names, no token, an empty Hugging Face cache."""
    monkeypatch.setenv("AVARC_HOME", str(tmp_path / "avarc"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path


@pytest.fixture
def hub(server: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The server, as this process's Hugging Face hub, with 10 ms between retries."""
    use(server.url, monkeypatch)
    monkeypatch.setattr(hub_module, "BACKOFF", (0.01,))
    return server


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does in a new process."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def megabyte(server: Hub) -> None:
    """Make the tokenizer's file a megabyte of noise: long enough to be interrupted."""
    server.files[VAR, "vae_ch160v4096z32.pth"] = random.Random(0).randbytes(1 << 20)

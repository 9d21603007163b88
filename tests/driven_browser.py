"""A headless Chromium that tests drive over its debugging pipe: pages, keys, files, screenshots.

It is started once for all tests of a process; each test gets an empty page in a session of its own.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --disable-dev-shm-usage "
    "--remote-debugging-pipe"
).split()
TIMEOUT = 300.0  # seconds, of everything that is waited for


class Browser:
    """One page. Errors of its scripts and its console are in `problems`, the addresses of its requests in `asked`."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        to_read, self._write = _high(os.pipe())
        self._read, to_write = _high(os.pipe())
        command = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._buffer, self._session, self._context = 0, b"", "", ""
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.new_page()

    def new_page(self) -> None:
        """Begin again with an empty page, without cookies, files or messages of those before."""
        self._session = ""
        if self._context:
            self("Target.disposeBrowserContext", browserContextId=self._context)
        self._context = self("Target.createBrowserContext")["browserContextId"]
        target = self("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.problems, self.asked = [], []
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of Chromium's protocol. Raises: RuntimeError."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self._read, 2**20) if ready else b""
            if not data:
                raise RuntimeError("Chromium does not answer")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        return received

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method", ""), event.get("params", {})
        if event.get("sessionId") != self._session:
            return  # of a page before
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.problems.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(json.dumps(params["entry"]))
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        """Load a page in a window of this size."""
        self.resize(width, height)
        self("Page.navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        """Change the window's size."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def value(self, expression: str) -> Any:
        """What JavaScript gives, as JSON types."""
        result = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until an expression is true; returns its value. Raises: TimeoutError."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            if found := self.value(expression):
                return found
            time.sleep(0.05)
        raise TimeoutError(f"{expression}; problems: {self.problems}; page: {self.value('document.body.innerText')}")

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Put files into a file input."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        described = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self("Input.dispatchKeyEvent", type="keyDown", text=text, **described)
        self("Input.dispatchKeyEvent", type="keyUp", **described)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG."""
        shot = self("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


def _high(pipe: tuple[int, int]) -> tuple[int, int]:
    """The pipe under numbers above those that the browser is given."""
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pipe]
    for end in pipe:
        os.close(end)
    return moved[0], moved[1]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The browser of this process; tests use `browser`."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    started = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield started
    started.close()


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """A browser with an empty page, as if it had just been started."""
    chromium.new_page()
    return chromium


@pytest.fixture
def ask(chromium: Browser) -> Callable[..., Any]:
    """`ask(page, question, dark=False)`: what the body of a JavaScript function, which may await, returns in a page.

    The page is a file; none of its scripts may fail or write to the console.
    """

    def answer(page: Path, question: str, *, dark: bool = False) -> Any:
        chromium.new_page()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        chromium("Emulation.setEmulatedMedia", features=[scheme])
        chromium.open(page.as_uri(), width=1200)
        chromium.wait("document.readyState === 'complete'")
        found = chromium.value(f"(async () => {{ {question} }})()")
        assert not chromium.problems
        return found

    return answer

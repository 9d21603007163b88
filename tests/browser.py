"""Opens a page in the machine's Chromium, where there is one, and asks it something."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = "--headless --no-sandbox --disable-gpu --disable-background-networking --enable-logging=stderr --v=0".split()
ANSWER = """
addEventListener('error', event => document.body.dataset.failed = event.message);
addEventListener('load', async () => {
  const answer = document.createElement('pre');
  answer.id = 'answer';
  try { answer.textContent = JSON.stringify(await ask()); } catch (error) { answer.textContent = `"${error}"`; }
  document.body.append(answer);
});
"""


def ask(page: Path, question: str, folder: Path, *, dark: bool = False) -> Any:
    """What a JavaScript function body returns in the page, through JSON; an error's text if it fails.

    Args:
        question: may await. folder: for the browser's own files.
    """
    script = f"{ANSWER}\nasync function ask() {{ {question} }}"
    copy = folder / "asked.html"
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    words = [
        *OPTIONS,
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1200,900",
        "--virtual-time-budget=30000",
    ]
    words += ["--blink-settings=preferredColorScheme=0"] if dark else []
    assert CHROMIUM is not None
    command = [CHROMIUM, *words, "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    return json.loads(html.unescape(found[1]))

"""Open every link to another site in README and docs; needs a network. The tests check those inside.

    python tests/tools/links.py        # prints what does not answer; exit status 1 if there is any

Some sites refuse programs (403, 429): look at those by hand.
"""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((https?://[^)\s]+)\)|<(https?://[^>\s]+)>")
OWN = ("http://127.0.0.1", "http://localhost")
SECONDS = 20


def links(pages: Iterable[Path]) -> dict[str, list[str]]:
    """The links to other sites, and the pages that have them."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for page in pages:
        for match in LINK.finditer(page.read_text("utf-8")):
            address = (match[1] or match[2]).partition("#")[0]
            if not address.startswith(OWN):
                found[address].append(page.name)
    return dict(found)


def problem(address: str) -> str | None:
    """Why this address cannot be opened; None if it can."""
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (links of avarc's documentation)"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return None
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(error)


def main() -> int:
    found = links(PAGES)
    with ThreadPoolExecutor(8) as threads:
        problems = dict(zip(found, threads.map(problem, found), strict=True))
    broken = {address: why for address, why in problems.items() if why}
    for address, why in broken.items():
        print(f"{address} ({', '.join(sorted(set(found[address])))}): {why}")
    print(f"{len(found)} links, {len(broken)} of them do not answer")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())

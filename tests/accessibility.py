"""A small checker of our pages that needs no browser: what a screen reader and a keyboard depend on, and contrast.

axe-core checks more, in a browser (tests/pages/test_in_browser.py), but only where there is one.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "input"}
SVG_LEAVES = {"path", "line", "circle", "rect"}
FIELDS = {"input", "select"}
Color = tuple[float, float, float]


class Audit(HTMLParser):
    """Collects what is wrong with a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self._ids: list[str] = []
        self._refers: list[str] = []
        self._level = 0
        self._texts = {"title": "", "caption": "", "th": "", "h1": ""}
        self.feed(page)
        self._expect(not self._open, f"not closed: {self._open}")
        for tag in ("h1", "main", "title"):
            self._expect(self.tags.count(tag) == 1 if tag != "title" else "title" in self.tags, f"not one <{tag}>")
        self._expect(len(set(self._ids)) == len(self._ids), "an id is there twice")
        self._expect(set(self._refers) <= set(self._ids), "a reference to no id")

    def _expect(self, right: bool, problem: str) -> None:
        if not right:
            self.problems.append(problem)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        self._ids += [found["id"] or ""] if "id" in found else []
        self._refers += [found["data-list"] or ""] if "data-list" in found else []
        self._expect(tag != "html" or bool(found.get("lang")), "no language")
        self._expect(tag != "img" or bool(found.get("alt")), f"an image without text: {self._open}")
        named = found.get("role") == "img" and bool(found.get("aria-label"))
        self._expect(tag != "svg" or named, "a chart without text")
        self._expect(tag != "th" or found.get("scope") in ("row", "col"), "a header without a scope")
        self._expect(tag not in FIELDS or "label" in self._open, f"a field without a label: {found}")
        if re.fullmatch("h[1-6]", tag):
            level = int(tag[1])
            self._expect(level <= self._level + 1, f"<{tag}> follows <h{self._level}>")
            self._level = level
        if tag in self._texts:
            self._texts[tag] = ""
        if tag == "thead":
            self._expect(bool(self._texts["caption"]), "a table without a caption")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._expect(tag in SVG_LEAVES, f"<{tag}/>")

    def handle_endtag(self, tag: str) -> None:
        self._expect(bool(self._open) and self._open.pop() == tag, f"</{tag}> closes another element")
        if tag in self._texts:
            self._expect(bool(self._texts[tag].strip()), f"<{tag}> is empty")
        if tag == "table":
            self._texts["caption"] = ""

    def handle_data(self, data: str) -> None:
        for tag in self._texts:
            if tag in self._open:
                self._texts[tag] += data


def palettes(css: str) -> list[dict[str, Color]]:
    """The colors of each :root in a style sheet, in its order."""
    blocks = re.findall(r":root \{([^}]*)\}", css)
    return [{name: rgb(value) for name, value in re.findall(r"--(\w+): #(\w{6})", block)} for block in blocks]


def rgb(value: str) -> Color:
    """ "rrggbb" as three numbers up to 1."""
    red, green, blue = (int(value[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


def mix(a: Color, b: Color, share: float) -> Color:
    """color-mix(in srgb, a share, b)."""
    red, green, blue = (share * x + (1 - share) * y for x, y in zip(a, b, strict=True))
    return red, green, blue


def contrast(a: Color, b: Color) -> float:
    """The contrast ratio of WCAG 2: 4.5 for text, 3 for what is no text."""
    light, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: Color) -> float:
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue

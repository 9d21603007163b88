"""The caption cleaner of LlamaGen's reference (DeepFloyd's), which its models were trained with.

The order of the steps and what each removes are part of the model: a caption must reach the text encoder as captions
did in training. Plain captions, such as "a photo of a tench", pass unchanged but for capitals.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from html.parser import HTMLParser
from urllib.parse import unquote_plus

_HOST = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_IDEOGRAPHS = "\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)

Step = Callable[[str], str]


def _replace(pattern: str, by: str) -> Step:
    return partial(re.compile(pattern).sub, by)


class _Text(HTMLParser):
    """Collects the text of HTML; what scripts and styles contain is none."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style") and self.hidden > 0

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def _text_of_html(text: str) -> str:
    parser = _Text()
    with suppress(AssertionError):  # Python's parser gives up on some wrong declarations, such as "<![x"
        parser.feed(text)
        parser.close()
    return "".join(parser.parts)


def _without_many_dashes(text: str) -> str:
    return re.sub("[-_]", " ", text) if len(re.findall("[-_]", text)) > 3 else text


def _repair(text: str) -> str:
    """Undo wrong decoding and escaping."""
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


_STEPS: tuple[Step, ...] = (
    lambda text: unquote_plus(text).strip().lower(),
    _replace("<person>", "person"),
    _replace(rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_HOST})", ""),  # addresses
    _replace(rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_HOST})", ""),
    _text_of_html,
    _replace(r"@\w+\b", ""),  # names of accounts
    _replace(f"[{_IDEOGRAPHS}]+", ""),
    _replace(f"[{_DASHES}]+", "-"),
    _replace("[`´«»“”¨]", '"'),
    _replace("[‘’]", "'"),
    _replace("&quot;?", ""),
    _replace("&amp", ""),
    _replace(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # addresses of machines
    _replace(r"\d:\d\d\s+$", ""),
    _replace(r"\\n", " "),
    _replace(r"#\d{1,3}\b", ""),  # numbers of articles
    _replace(r"#\d{5,}\b", ""),
    _replace(r"\b\d{6,}\b", ""),
    _replace(rf"\S+\.(?:{_FILES})", ""),  # names of files
    _replace(r"[\"']{2,}", '"'),
    _replace(r"\.{2,}", " "),
    _replace(r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    _replace(r"\s+\.\s+", " "),
    _without_many_dashes,
    _repair,
    _replace(r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # codes: jc6640
    _replace(r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    _replace(r"\b\d+[a-zA-Z]+\d+\b", ""),
    _replace(r"(worldwide\s+)?(free\s+)?shipping", ""),  # what shops and galleries write
    _replace(r"(free\s)?download(\sfree)?", ""),
    _replace(r"\bclick\b\s(?:for|on)\s\w+", ""),
    _replace(rf"\b(?:{_FILES})(?:\simages?)?", ""),
    _replace(r"\bpage\s+\d+\b", ""),
    _replace(r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    _replace(r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes
    _replace(r"\b\s+:\s+", ": "),  # spaces around punctuation
    _replace(r"(\D[,./])\b", r"\1 "),
    _replace(r"\s+", " "),
    _replace(r"^[\"']([\w\W]+)[\"']$", r"\1"),  # quotes around everything, and other marks at the ends
    _replace(r"^['_,\-:;]", ""),
    _replace(r"['_,\-:+]$", ""),
    _replace(r"^\.\S+$", ""),
    str.strip,
)


def clean_once(caption: str) -> str:
    """One application of the cleaner."""
    for step in _STEPS:
        caption = step(caption)
    return caption


def clean(caption: str) -> str:
    """A caption as the text encoder reads it: the reference applies the cleaner twice."""
    return clean_once(clean_once(caption))

"""Self-contained HTML pages from the templates in assets/templates: one file, no network, images inline."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from avarc_cli.names import to_line

TEMPLATES = Path(__file__).resolve().parent / "assets" / "templates"


@dataclass(frozen=True)
class Picture:
    """An image inside of a page."""

    source: str
    """A data URI."""

    rows: int
    """Its height in its own pixels: when shown larger, it is not smoothed."""


def render(template: str, **values: object) -> Markup:
    """A template of assets/templates with these values: each is one line of text, escaped, or Markup."""
    return Markup(_environment().get_template(template).render(values))


def text(value: object) -> Markup:
    """Any value as one line, escaped for HTML and XML, text and attributes; Markup as it is."""
    return value if isinstance(value, Markup) else escape(to_line(str(value)))


def picture(pixels_HW3: np.ndarray) -> Picture:
    """Pixels (H, W, 3) uint8 as inline PNG data."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/png;base64,{data}", len(pixels_HW3))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["source"] = _source
    return environment


def _source(name: str) -> Markup:
    """One of avarc's style sheets or scripts, which are not templates: inserted unchanged."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))

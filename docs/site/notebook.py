"""A hook of MkDocs that shows docs/notebook.ipynb, with its stored outputs, as a page of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the page and its pictures; the notebook itself stays beside it, to be downloaded."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, found = MarkdownExporter().from_filename(notebook.abs_src_path)
        text = re.sub(r"!\[(png|jpeg)\]\(", "![what the cell above shows](", text)
        page = Path(notebook.src_uri).with_suffix(".md")
        files.append(File.generated(config, page.as_posix(), content=text))
        for name, picture in found["outputs"].items():
            files.append(File.generated(config, page.with_name(name).as_posix(), content=picture))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to the notebook lead to its page; on GitHub they lead to the notebook."""
    return markdown.replace("](notebook.ipynb)", "](notebook.md)")

"""The documentation: links lead somewhere, what it names exists, and the glossary is in order."""

import re

import pytest
import reference
from doc_blocks import PAGES, ROOT

from avarc_cli.scoring.scores import TOKEN_NOISE


def anchors(page):
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if not re.match(r"https?:|mailto:", target):
            path, _, fragment = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not fragment or fragment in anchors(file), target


def test_files_that_docs_and_code_name_exist():
    sources = [path for folder in ("avarc_cli", "kernels", "tests") for path in (ROOT / folder).rglob("*.py")]
    pattern = r"\b(?:avarc_cli|kernels|tests|docs)/[\w./-]+\.(?:py|md|txt|tsv|npz|json|png|safetensors)\b"
    missing = {
        (page.name, name)
        for page in [*PAGES, *sources]
        for name in re.findall(pattern, page.read_text("utf-8"))
        if not (ROOT / name).exists() and not name.endswith("_x.py")  # x: any operation
    }
    assert not missing


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z][\w-]*)`", page.read_text("utf-8"))) <= targets, page.name


def test_the_glossary_is_in_alphabetical_order():
    terms = re.findall(r"^\*\*(.+?)\.\*\*", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE)
    assert len(terms) > 50
    assert terms == sorted(terms, key=str.casefold)


def test_the_noise_of_a_token_is_that_of_the_code():
    page = (ROOT / "docs" / "numbers.md").read_text("utf-8")
    rows = re.search(r"^\| precision \|(.+)\|\n.*\n\| s, nats per token \|(.+)\|$", page, re.MULTILINE)
    names, values = ([cell.strip() for cell in row.split("|")] for row in rows.groups())
    assert dict(zip(names, map(float, values), strict=True)) == TOKEN_NOISE


def test_the_reference_is_that_of_this_version():
    """Otherwise write it again: python tests/tools/reference.py"""
    committed = {page.name: page.read_text("utf-8") for page in reference.FOLDER.glob("*.md")}
    assert committed == reference.pages()


def test_every_page_is_in_the_navigation_of_the_site():
    """`make docs` looks at the links and anchors of the site; mkdocs is not there for this test."""
    navigation = (ROOT / "docs" / "site" / "mkdocs.yml").read_text("utf-8")
    named = set(re.findall(r"[\w/-]+\.md", navigation))
    paths = [*(ROOT / "docs").rglob("*.md"), *(path.with_suffix(".md") for path in (ROOT / "docs").rglob("*.ipynb"))]
    pages = {str(page.relative_to(ROOT / "docs")) for page in paths}
    assert named == pages
    assert "://" not in re.sub(r"(site|repo)_url: .*", "", navigation)  # fonts and scripts come with the site

"""The documentation as a site, opened as files without a server: its search, its pictures, and requests to others."""

from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "build" / "site"
pytestmark = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="no site here (make docs)")

FOUND = "[...document.querySelectorAll('.md-search-result__item h1, .md-search-result__item h2')].map(x => x.innerText)"
READY = """(input => {
  if (Date.now() - (window.tried ?? 0) > 3000) {
    window.tried = Date.now();
    input.blur();  // the page's script loads the index at the first focus that it sees
    input.focus();
  }
  return document.querySelector('.md-search-result__meta').innerText.startsWith('Type');
})(document.querySelector('.md-search__input'))"""


def test_the_site_is_searched_offline(browser):
    browser.open((SITE / "index.html").as_uri())
    browser.wait("document.readyState === 'complete'")
    browser.wait(READY)
    browser.type("calibratio")
    browser.press("n", 78, "n")  # it searches when a key is released
    found = browser.wait(f"{FOUND}.length && {FOUND}")
    assert any("Calibration" in title or "Plans" in title for title in found)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", ["index.html", "performance.html", "training-tutorial.html"])
def test_pages_of_the_site_load_all_that_they_show_from_their_folder(browser, page, width):
    browser.open((SITE / page).as_uri(), width=width)
    browser.wait("document.readyState === 'complete'")
    assert browser.value("[...document.images].filter(x => !x.naturalWidth).map(x => x.src)") == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    elsewhere = [url for url in browser.asked if not url.startswith(("file:", "data:", "blob:"))]
    assert browser.problems == [] and elsewhere == []

"""avarc app in a browser: everything can be done, with the keyboard too, at two widths, and without errors."""

import os
import signal
import subprocess
from pathlib import Path

import programs
import pytest

import avarc_cli
from avarc_cli.zoo.local_files import ASSETS

FIVES = sorted((ASSETS / "digits" / "test" / "5").iterdir())[:5]
TAB, ENTER, RIGHT = ("Tab", 9), ("Enter", 13, "\r"), ("ArrowRight", 39)
DONE = "document.getElementById('status').textContent === ''"
EXPLAINED = "document.getElementById('why').hidden === false && " + DONE


@pytest.fixture(scope="module")
def url():
    env = dict(os.environ, PYTHONPATH=str(Path(avarc_cli.__file__).parent.parent))
    options = {"stdout": subprocess.PIPE, "text": True, "env": env}
    process = programs.start("serve_app", "--port", "0", "--model", "digits-0-4", "--compare", "digits", **options)
    yield process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    process.wait(20)
    process.stdout.close()


@pytest.fixture
def page(browser, url):
    browser.open(url)
    browser.wait("document.body?.dataset.ready")
    yield browser
    assert not browser.problems
    assert all(each.startswith((url, "data:", "blob:", "about:")) for each in browser.asked), (
        "only this machine is asked"
    )


def text(page, identifier):
    return page.value(f"document.getElementById('{identifier}').innerText")


def test_upload_predict_map_draw_and_a_new_class(page):
    page.choose_files("#file", FIVES[4])
    page.wait(EXPLAINED)
    answers = page.value("[...document.querySelectorAll('.answer')].map(each => each.textContent)")
    assert len(answers) == 2 and answers[0] != "five" and answers[1] == "5"
    assert page.value("document.querySelectorAll('.stages li').length") == 6
    assert page.value("document.querySelectorAll('.dropped').length") > 8
    assert "against" in text(page, "why-text") and "nats" in text(page, "why-text")
    whole = page.value("document.getElementById('why-map').src")
    page.value("var s = document.getElementById('scales'); s.value = 1; s.dispatchEvent(new Event('input'))")
    assert page.value("document.getElementById('why-map').src") != whole and " of " in text(page, "why-text")
    before = text(page, "why-text")
    page.value(
        "var c = document.getElementById('why-contrast'); c.selectedIndex = 0; c.dispatchEvent(new Event('change'))"
    )
    page.wait(f"{DONE} && document.getElementById('why-text').innerText !== {before!r}")
    page.value("document.querySelector('#draw button').click()")
    page.wait("document.querySelectorAll('#drawn img').length === 4")

    page.value("document.getElementById('name').value = 'five'")
    page.choose_files("#files", *FIVES[:4])
    page.value("document.querySelector('#add button').click()")
    page.wait(f"document.getElementById('added').textContent.includes('4 images') && {DONE}")
    assert page.value("document.querySelector('.answer').textContent") == "five"


def test_everything_is_reached_with_the_keyboard(page):
    for key in (TAB, ENTER):  # the link that skips the examples
        page.press(*key)
    assert page.value("document.activeElement.id") == "prediction"
    seen = set()
    for _ in range(40):
        page.press(*TAB)
        kind = "document.activeElement.id || document.activeElement.textContent || document.activeElement.tagName"
        seen.add(page.value(kind))
    assert {"file", "why-class", "why-contrast", "draw-class", "Draw four", "name", "files", "Learn it"} <= seen
    page.value("document.querySelector('#examples button').focus()")
    page.press(*TAB)
    page.press(*ENTER)
    page.wait(EXPLAINED)
    assert page.value("document.querySelector('[aria-pressed=true] img').alt") == "example: 1"
    page.value("document.getElementById('opacity').focus()")
    page.press(*RIGHT)
    assert page.value("document.getElementById('why-map').style.opacity") == "0.61"
    page.value("document.getElementById('name').focus()")
    page.type("3")
    assert page.value("document.getElementById('name').value") == "3"


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off_or_unnamed(page, width):
    page.resize(width, 900)
    page.value("document.querySelector('#examples button').click()")
    page.wait(EXPLAINED)
    assert page.value("document.documentElement.scrollWidth") <= width
    small = (
        "[...document.querySelectorAll('button, select, .button')].filter(each => each.offsetParent)"
        ".filter(each => each.offsetHeight < 40).map(each => each.outerHTML)"
    )
    assert page.value(small) == []
    unnamed = "[...document.querySelectorAll('input, select')].filter(each => !each.labels.length).map(each => each.id)"
    assert page.value(unnamed) == []
    assert page.value("[...document.images].filter(each => each.offsetParent && !each.alt).length") == 0


def test_what_is_wrong_is_said_and_then_gone(page, tmp_path):
    (tmp_path / "x.png").write_text("no image")
    page.choose_files("#file", tmp_path / "x.png")
    page.wait("!document.getElementById('problem').hidden")
    assert "cannot read" in text(page, "problem") and str(tmp_path) not in text(page, "problem")
    page.problems.clear()  # the browser lists the answer 400
    page.value("document.querySelector('#examples button').click()")
    page.wait(EXPLAINED)
    assert page.value("document.getElementById('problem').hidden")

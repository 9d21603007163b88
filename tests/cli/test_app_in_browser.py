"""avarc app in a browser: everything can be done, with the keyboard alone, at two widths, and without a barrier."""

import json
import os
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import programs
import pytest
from accessibility import Audit
from killing import is_running, until

import avarc_cli
from avarc_cli.zoo.local_files import ASSETS

FIVES = sorted((ASSETS / "digits" / "test" / "5").iterdir())[:5]
TAB, ENTER, LEFT, RIGHT, UP = ("Tab", 9), ("Enter", 13, "\r"), ("ArrowLeft", 37), ("ArrowRight", 39), ("ArrowUp", 38)
DONE = "document.getElementById('status').textContent === ''"
EXPLAINED = "document.getElementById('why').hidden === false && " + DONE
WIDTHS = (390, 1280)
AXE = find_spec("axe_playwright_python")


@pytest.fixture(scope="module")
def hold(tmp_path_factory):
    """A file that holds fits while it exists, in which one that waits writes the id of its process."""
    return tmp_path_factory.mktemp("hold") / "fits"


@pytest.fixture(scope="module")
def url(hold):
    env = dict(os.environ, PYTHONPATH=str(Path(avarc_cli.__file__).parent.parent), HOLD_FITS=str(hold))
    options = {"stdout": subprocess.PIPE, "text": True, "env": env}
    process = programs.start("serve_app", "--port", "0", "--model", "digits-0-4", "--compare", "digits", **options)
    yield process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    process.wait(300)
    process.stdout.close()


@pytest.fixture
def page(browser, url):
    """The app's page, for a user who was never there."""
    browser.open(url)
    browser.wait("document.body?.dataset.ready")
    yield browser
    assert not browser.problems
    assert all(each.startswith((url, "data:", "blob:", "about:")) for each in browser.asked), "no other server is asked"


def text(page, identifier):
    return page.value(f"document.getElementById('{identifier}').innerText")


def barriers(page, *, dark=False):
    """What our checker and axe-core find at both widths, what is cut off, and what is too small for a finger."""
    found = []
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page("Emulation.setEmulatedMedia", features=[scheme])
    for width in WIDTHS:
        page.resize(width, 900)
        if AXE is not None:
            page.value((Path(AXE.submodule_search_locations[0]) / "axe.min.js").read_text() + ";0")
            violations = page.value("axe.run().then(found => JSON.stringify([found.passes.length, found.violations]))")
            passed, violated = json.loads(violations)
            assert passed > 20
            found += [(width, each["id"], each["nodes"][0]["html"]) for each in violated]
        if (wide := page.value("document.documentElement.scrollWidth")) > width:
            found.append((width, "wide", wide))
        small = (
            "[...document.querySelectorAll('button, select, .button')].filter(each => each.offsetParent)"
            ".filter(each => each.offsetHeight < 40).map(each => each.outerHTML)"
        )
        found += [(width, "small", each) for each in page.value(small)]
    return found + Audit("<!doctype html>" + page.value("document.documentElement.outerHTML")).problems


def tab_to(page, condition):
    """Press Tab until the element with the focus meets a condition on `it`."""
    for _ in range(60):
        page.press(*TAB)
        if page.value(f"(it => {condition})(document.activeElement)"):
            return
    raise AssertionError(f"the keyboard does not reach {condition}")


def test_an_upload_is_classified_by_both_models_and_explained_by_scales(page):
    page.choose_files("#file", FIVES[4])
    page.wait(EXPLAINED)
    answers = page.value("[...document.querySelectorAll('.answer')].map(each => each.textContent)")
    assert len(answers) == 2 and answers[1] == "5"
    assert page.value("document.querySelectorAll('.stages li').length") == 6
    assert page.value("document.querySelectorAll('.dropped').length") > 8
    assert page.value("document.getElementById('chosen').naturalWidth") > 0
    assert "against" in text(page, "why-text") and "nats" in text(page, "why-text")
    page.value("var m = document.getElementById('why-model'); m.value = 'digits'; m.dispatchEvent(new Event('change'))")
    page.wait(f"{DONE} && document.getElementById('why-text').innerText.startsWith('5 against')")
    assert barriers(page) == []


def test_everything_is_done_with_the_keyboard_and_no_state_has_a_barrier(page, hold):
    assert barriers(page) == []
    for key in (TAB, ENTER):  # the link that skips the examples
        page.press(*key)
    assert page.value("document.activeElement.id") == "prediction"
    page.value("document.activeElement.blur()")
    tab_to(page, "it.id === 'file'")
    tab_to(page, "it.querySelector('img')?.alt === 'example: 1'")
    page.press(*ENTER)
    page.wait(EXPLAINED)
    assert page.value("document.querySelector('[aria-pressed=true] img').alt") == "example: 1"
    assert barriers(page, dark=True) == []

    before = text(page, "why-text")
    tab_to(page, "it.id === 'why-class'")
    tab_to(page, "it.id === 'why-contrast'")
    contrast = page.value("document.activeElement.selectedIndex")
    page.press(*(UP if contrast > 2 else ("ArrowDown", 40)))
    page.wait(f"{DONE} && document.getElementById('why-text').innerText !== {before!r}")
    tab_to(page, "it.id === 'opacity'")
    page.press(*RIGHT)
    assert page.value("document.getElementById('why-map').style.opacity") == "0.61"
    tab_to(page, "it.id === 'scales'")
    whole = page.value("document.getElementById('why-map').src")
    page.press(*LEFT)
    assert page.value("document.getElementById('why-map').src") != whole and " of " in text(page, "why-text")

    tab_to(page, "it.id === 'draw-class'")
    tab_to(page, "it.textContent === 'Draw four'")
    page.press(*ENTER)
    page.wait("document.querySelectorAll('#drawn img').length === 4")
    assert text(page, "drawn-what") == "1, drawn by digits-0-4"

    tab_to(page, "it.id === 'name'")
    page.type("five")
    tab_to(page, "it.id === 'files'")
    page.choose_files("#files", *FIVES[:4])  # in place of the browser's own dialog
    tab_to(page, "it.textContent === 'Learn it'")
    hold.touch()
    page.press(*ENTER)
    fit = int(until(hold.read_text))
    page.wait("document.getElementById('status').textContent.includes('learning five')")
    tab_to(page, "it.id === 'stop'")
    assert barriers(page) == []
    page.press(*ENTER)
    until(lambda: not is_running(fit))
    hold.unlink()
    page.wait("document.getElementById('stop').hidden")
    assert page.value("document.activeElement.textContent") == "Learn it" and not text(page, "status")
    page.press(*ENTER)
    page.wait(f"document.getElementById('added').textContent.includes('4 images') && {DONE}")
    assert "five" in page.value("document.querySelector('.stages').innerText")
    assert barriers(page) == []


def test_a_class_is_not_learned_for_a_user_who_leaves_the_page(page, hold):
    page.value("document.getElementById('name').value = 'five'")
    page.choose_files("#files", FIVES[0])
    hold.touch()
    page.value("document.querySelector('#add button').click()")
    fit = int(until(hold.read_text))
    page("Page.navigate", url="about:blank")
    until(lambda: not is_running(fit))
    hold.unlink()


def test_what_is_wrong_is_said_and_then_gone(page, tmp_path):
    (tmp_path / "x.png").write_text("no image")
    page.choose_files("#file", tmp_path / "x.png")
    page.wait("!document.getElementById('problem').hidden")
    assert "cannot read" in text(page, "problem") and str(tmp_path) not in text(page, "problem")
    page.problems.clear()  # the browser lists the answer 400
    assert barriers(page) == []
    page.value("document.querySelector('#examples button').click()")
    page.wait(EXPLAINED)
    assert page.value("document.getElementById('problem').hidden")

"""Pages in a browser: axe-core, filters, order, maps over their image, and the matrix of many classes."""

from importlib.util import find_spec
from pathlib import Path

import pytest

AXE = find_spec("axe_playwright_python")


@pytest.mark.skipif(AXE is None, reason="no axe-core here (pip install axe-playwright-python)")
def test_axe_finds_no_barrier(ask, page, tmp_path):
    passed, violations = axe(ask, page, tmp_path)
    assert violations == [] and passed > 20


@pytest.mark.skipif(AXE is None, reason="no axe-core here (pip install axe-playwright-python)")
def test_axe_finds_no_barrier_in_the_dark_and_would_find_one(ask, gallery, tmp_path):
    assert axe(ask, gallery, tmp_path, dark=True)[1] == []
    broken = tmp_path / "broken.html"
    broken.write_text(gallery.read_text().replace("<h1>", '<img src="data:,"><h1 style="color:#333">'))
    assert {"image-alt", "color-contrast"} <= {each[0] for each in axe(ask, broken, tmp_path, dark=True)[1]}


def axe(ask, page, folder, **how):
    """The number of rules of axe-core that the page passes, and the others: (rule, first element, what is wrong)."""
    script = (Path(AXE.submodule_search_locations[0]) / "axe.min.js").read_text()
    question = """
        document.querySelectorAll('details').forEach(each => { each.open = true; });
        const found = await axe.run(document, {resultTypes: ['violations']});
        const message = ({id, nodes: [node]}) => [id, node.html, node.failureSummary];
        return [found.passes.length, found.violations.map(message)];
    """
    with_axe = folder / "page.html"
    with_axe.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    return ask(with_axe, question, **how)


FILTER = """
const form = document.querySelector('form.filters'), list = document.getElementById(form.dataset.list);
const set = (name, value) => {
  form.elements.namedItem(name).value = value;
  for (const kind of ['input', 'change']) form.elements.namedItem(name).dispatchEvent(new Event(kind, {bubbles: true}));
};
const name = item => item.querySelector('h3, th').textContent;
const shown = () => [...list.children].filter(each => each.offsetParent).map(name);
const said = () => form.querySelector('output').value;
"""


def test_images_are_filtered_and_sorted(ask, gallery):
    question = """
        const all = shown();
        set('result', 'wrong');
        const wrong = shown(), message = said();
        set('result', '');
        set('text', '1038');
        const named = shown();
        set('text', '');
        set('order', 'surprise up');
        return {all, wrong, message, named, sorted: shown()};
    """
    found = ask(gallery, FILTER + question)
    assert len(found["all"]) == 4 and found["message"] == "2 of 4 shown"
    assert found["wrong"] == ["9/1038.png", "9/0254.png"]
    assert found["named"] == ["9/1038.png"]
    assert set(found["sorted"][:2]) == {"0/0078.png", "1/0021.png"}


def test_the_images_of_a_report_are_filtered_by_class_and_sorted_by_their_columns(ask, report):
    question = """
        document.querySelectorAll('details').forEach(each => { each.open = true; });
        set('label', 'kind 7');
        set('result', 'wrong');
        const wrong = shown();
        set('tokens', '105');
        const many = shown().length;
        set('margin', '0.5');
        const none = shown().length, head = list.closest('table').tHead.rows[0].cells[7];
        for (const name of ['label', 'result', 'tokens', 'margin']) set(name, '');
        head.querySelector('button').click();
        const tokens = () => +list.rows[0].cells[7].textContent;
        const most = [tokens(), head.getAttribute('aria-sort')];
        head.querySelector('button').click();
        return {wrong, many, none, most, least: [tokens(), head.getAttribute('aria-sort')]};
    """
    found = ask(report, FILTER + question)
    assert len(found["wrong"]) == 3 and all(name.startswith("7/") for name in found["wrong"])
    assert 0 < found["many"] < 3 and found["none"] == 0
    assert found["most"] == [112, "descending"] and found["least"] == [100, "ascending"]


def test_maps_lie_over_their_image_and_tell_values_to_the_keyboard(ask, gallery):
    question = """
        const slider = document.getElementById('opacity'), map = document.querySelector('.over .map');
        const at = value => {
          slider.value = value;
          slider.dispatchEvent(new Event('input'));
          return getComputedStyle(map).opacity;
        };
        const opacity = [at(0), at(35), at(100)], tip = document.getElementById('value');
        const press = key => map.dispatchEvent(new KeyboardEvent('keydown', {key, cancelable: true}));
        ['ArrowDown', 'ArrowRight', 'ArrowRight', 'ArrowUp', 'ArrowUp'].forEach(press);
        const message = tip.textContent, value = map.dataset.values.split(' ')[2];
        press('Escape');
        const below = [...document.querySelectorAll('.over .below')];
        return {opacity, message, value, gone: getComputedStyle(tip).display, tab: map.tabIndex, maps: below.length,
          same: below.every(each => each.src === each.closest('.card').querySelector('.input img').src)};
    """
    found = ask(gallery, question)
    assert found["opacity"] == ["0", "0.35", "1"]
    assert found["message"] == f"row 1, column 3: {found['value']} nats in this cell"
    assert found["gone"] == "none" and found["tab"] == 0
    assert found["maps"] == 12 and found["same"]


def test_the_matrix_shows_any_classes(ask, large_report):
    question = """
        const form = document.getElementById('matrix-controls');
        const choose = (name, value) => {
          form.elements.namedItem(name).value = value;
          form.elements.namedItem(name).dispatchEvent(new Event(name === 'zoom' ? 'input' : 'change'));
        };
        const heads = () => [...document.querySelectorAll('#matrix thead th')].map(each => each.textContent);
        const note = () => document.getElementById('matrix-note').textContent;
        const width = () => document.querySelector('#matrix td.hit').offsetWidth;
        choose('mode', 'near');
        choose('class', [...form.elements.namedItem('class').options].find(each => each.text === 'kind 50').value);
        const near = [heads(), note()];
        const rows = [...document.querySelectorAll('#matrix tbody tr')];
        const row = rows.find(each => each.cells[0].textContent === 'kind 50');
        const cells = [...row.querySelectorAll('td')].map(each => each.title).filter(Boolean);
        choose('mode', 'order');
        choose('class', '0');
        choose('count', '200');
        const all = heads().length, before = width();
        choose('zoom', '5');
        const box = document.getElementById('matrix');
        return {near, cells, all, zoomed: width() < before, wide: document.documentElement.scrollWidth > innerWidth,
          focus: box.tabIndex, name: box.getAttribute('aria-label')};
    """
    found = ask(large_report, question)
    heads, note = found["near"]
    assert sorted(heads) == ["kind 48", "kind 49", "kind 50", "kind 51", "kind 52"]
    assert note == "kind 50 and the 4 it is most confused with, of 200 classes."
    assert sorted(found["cells"]) == [f"kind 50 predicted as kind {c}: {n}" for c, n in ((50, 7), (51, 2), (52, 1))]
    assert found["all"] == 200 and found["zoomed"] and not found["wide"]
    assert found["focus"] == 0 and found["name"].startswith("Rows: the label")


def test_no_page_is_wider_than_a_telephone(ask, page):
    """A window has a least width, so the page is opened in a frame."""
    question = """
        document.querySelectorAll('details').forEach(each => { each.open = true; });
        const frame = document.createElement('iframe'), text = document.documentElement.outerHTML;
        document.body.replaceChildren(frame);
        frame.width = 390;
        frame.srcdoc = text.slice(0, text.lastIndexOf('<script>'));
        await new Promise(done => frame.addEventListener('load', done));
        return frame.contentDocument.documentElement.scrollWidth;
    """
    assert ask(page, question) <= 390

"""Pages without a browser: what they hold, what a screen reader makes of them, and how large they become."""

import json
import re

import pytest
from accessibility import Audit, contrast, mix, palettes

from avarc_cli.cli import main
from avarc_cli.page import TEMPLATES, render
from avarc_cli.results.confusion import confusion, natural
from tests.pages.conftest import MARKUP, many

MOST_SHADE = 0.55  # of a cell of the confusion matrix


def test_a_page_has_no_barrier_that_the_checker_knows(page):
    assert Audit(page.read_text()).problems == []


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('<img src="data:,">', "an image without text"),
        ("<h1>a</h1><h3>b</h3>", "<h3> follows <h1>"),
        ('<input name="a">', "a field without a label"),
        ('<p id="a"></p><p id="a"></p>', "an id is there twice"),
        ("<table><thead></thead></table>", "a table without a caption"),
        ("<table><caption>a</caption><thead><tr><th>b</th></tr></thead></table>", "a header without a scope"),
        ("<svg></svg>", "a chart without text"),
        ("<b><i></b></i>", "closes another element"),
    ],
)
def test_the_checker_finds_barriers(broken, message):
    assert any(message in problem for problem in Audit(broken).problems)


def test_a_page_needs_nothing_else_and_shows_markup_as_text(page):
    text = page.read_text()
    assert not re.search(r"https?://|@import|url\(", re.sub(r"<li>.*?</li>", "", text))  # sources of values are named
    assert MARKUP not in text and "<b>.png" not in text and "run <i>" not in text
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', text))


def test_controls_are_hidden_where_no_script_runs(page):
    assert all(form.endswith(" hidden>") for form in re.findall(r"<form[^>]*>", page.read_text()))


def test_numbers_in_names_are_in_their_order():
    names = ["zebra", "kind 10", "kind 9", "Kind 9a", "10", "9", ""]
    assert sorted(names, key=natural) == ["", "9", "10", "kind 9", "Kind 9a", "kind 10", "zebra"]


def test_colors_can_be_told_from_what_they_lie_on():
    for colors in palettes((TEMPLATES / "page.css").read_text()):
        for below in ("paper", "card"):
            for name in ("ink", "muted", "blue", "good", "vermilion"):
                assert contrast(colors[name], colors[below]) >= 4.5, (name, below)
            assert contrast(colors["edge"], colors[below]) >= 3, "the edges of fields"
        for shade in ("blue", "vermilion"):
            assert contrast(colors["ink"], mix(colors[shade], colors["paper"], MOST_SHADE)) >= 4.5, shade


def test_the_shades_of_the_matrix_end_where_numbers_can_be_read():
    found = confusion({("a", "a"): 4, ("b", "a"): 2})
    shades = [float(cell["shade"]) / 100 for _, cells in found["rows"] for cell in cells if cell["images"]]
    assert shades == [MOST_SHADE, MOST_SHADE]


def test_every_value_is_escaped_unless_it_is_markup():
    shown = render("plain_card.html", path="<a>\n", data={}, picture=None, rows=[("<b>", "1%")], label='"<c>')
    assert "&lt;a&gt;\\x0a" in shown and "&lt;b&gt;" in shown and "&#34;&lt;c&gt;" in shown


def test_the_matrix_of_many_classes_is_sparse_and_complete(large_report, large_run):
    text = large_report.read_text()
    data = json.loads(re.search(r'<script type="application/json" id="confusions">(.*?)</script>', text)[1])
    cells = list(zip(*[iter(data["cells"])] * 3, strict=True))
    records = [json.loads(line) for line in (large_run / "predictions.jsonl").read_text().splitlines()]
    assert len(data["names"]) == 200 and MARKUP in data["names"]
    assert sum(images for *_, images in cells) == len(records) == sum(data["totals"])
    for label, said, images in cells[:20]:
        pair = (data["names"][label], data["names"][said])
        assert images == sum((r["label_name"], r["prediction_name"]) == pair for r in records)
    assert text.count('<table class="matrix') == 1 and "The 20 most confused of 200 classes." in text


def test_a_few_classes_need_no_script_for_their_matrix(tmp_path):
    run = many(tmp_path / "run", classes=12, images=120)
    assert main(["-q", "report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert 'id="confusions"' not in text and 'title="kind 0 predicted as kind 1: 3"' in text


def test_a_page_of_many_images_and_classes_stays_small_and_says_where_the_rest_is(tmp_path):
    run = many(tmp_path / "run", classes=1200, images=12000)
    lines = (run / "predictions.jsonl").read_text()
    assert main(["-q", "report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert len(text) < 1.5e6 < len(lines)
    assert "The 1,000 hardest of 12,000" in text and "predictions.jsonl has all of them" in text
    assert "The 1,000 worst of 1,200; predictions.jsonl has all images" in text
    assert len(re.findall(r"<tr data-label", text)) == 1000


def test_the_hardest_images_come_first_and_their_numbers_are_those_of_the_run(report, runs):
    row = r'<tr data-label="[^"]*" data-said="[^"]*" data-result="(\w+)"[^>]*><th scope="row">([^<]*)</th>'
    rows = re.findall(row, report.read_text())
    records = {r["path"]: r for r in map(json.loads, (runs[0] / "predictions.jsonl").read_text().splitlines())}
    assert [result for result, _ in rows[:75]] == ["wrong"] * 75
    first = records[rows[0][1].replace("&lt;", "<").replace("&gt;", ">")]
    assert first["posterior"] == max(r["posterior"] for r in records.values() if r["label_rank"])
    assert f'<td class="number">{first["tokens_scored"]}</td></tr>' in report.read_text()


def test_a_run_without_images_has_a_page(tmp_path):
    run = many(tmp_path / "run", classes=4, images=0)
    assert main(["-q", "report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert Audit(text).problems == [] and "No image has a label" in text and 'id="images"' not in text


def test_a_run_without_mistakes_has_a_page(tmp_path):
    run = many(tmp_path / "run", classes=30, images=60)
    assert main(["-q", "report", str(run)]) == 0
    assert "There are none." in (run / "report.html").read_text()

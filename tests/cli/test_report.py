"""avarc report: the page of a finished run, in a parser and in a browser, and runs that lack something."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import h5py
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_datasets import noise

from avarc_cli import classifier
from avarc_cli.cli import main
from avarc_cli.loading import load_model

WITH_MAPS = 8 * (1 + 3 + 4)  # pictures of eight images, with p(x): three maps
VOID = {"meta", "link", "img", "br", "input"}


@pytest.fixture(scope="module")
def made(tiny_files, tmp_path_factory):
    """Twelve images of four classes, encoded: (folder, model options)."""
    folder = tmp_path_factory.mktemp("report")
    noise(folder / "img", 12)
    models = ["--model", str(tiny_files / "VAR.pth"), "--tokenizer", str(tiny_files / "VAE.pth")]
    data = [str(folder / "img"), *models, "--preprocess", "none"]
    assert main(["-q", "encode", *data, "--out", str(folder / "t.h5")]) == 0
    return folder, models


def classify(made, name, *options):
    folder, models = made
    words = ["-q", "classify", str(folder / "t.h5"), *models, "--out", str(folder / name), *options]
    assert main(words) == 0
    return folder / name


@pytest.fixture(scope="module")
def full(made):
    """A run that saved everything, and its page."""
    run = classify(made, "full", "--save-json", "--save-likelihood")
    assert main(["report", "--overwrite", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def bare(made):
    return classify(made, "bare", "--plan", "2:3,4:1")


@pytest.fixture
def copy(full, tmp_path):
    shutil.copytree(full, tmp_path / "copy")
    return tmp_path / "copy"


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.headings, self.ids = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attributes)
        self.links += [v for k, v in attributes if k in ("src", "href", "srcset", "action", "data")]
        if tag == "img":
            self.images.append(found)
        if tag == "svg":
            assert found["role"] == "img" and found["aria-label"]

    def handle_startendtag(self, tag, attributes):
        """<line .../> inside SVG: opened and closed at once."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def test_the_page_has_every_part_and_needs_nothing_else(full):
    text = (full / "report.html").read_text()
    page = Page(text)
    assert page.headings == [
        "full",
        "Calibration",
        "Candidates left by scale",
        "Confusions",
        "Accuracy by class",
        "Hardest images",
        "Images",
        "Protocol",
    ]
    assert all(link.startswith("data:") for link in page.links)
    assert not re.search(r"https?://|@import|url\(", text)
    assert len(page.images) == 8 * (1 + 1 + 4)  # eight images: input, one map, four scales
    assert all(image["alt"] for image in page.images)
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_the_numbers_are_those_of_the_run(full):
    text = (full / "report.html").read_text()
    metrics = json.loads((full / "metrics.json").read_text())
    records = [json.loads(line) for line in (full / "predictions.jsonl").read_text().splitlines()]
    assert f"<b>{metrics['accuracy']:.2%}</b>" in text
    assert f"Expected calibration error {metrics['expected_calibration_error']:.1%}." in text
    low, high = metrics["accuracy_95"]
    assert f"95 % interval {low:.1%} to {high:.1%}" in text
    for label in range(4):
        for predicted in {r["prediction_name"] for r in records}:
            count = sum((r["label"], r["prediction_name"]) == (label, predicted) for r in records)
            assert f'title="{label} predicted as {predicted}: {count}"' in text
    wrongest = min(records, key=lambda r: next((b["posterior"] for b in r["best"] if b["class"] == r["label"]), 0))
    assert text.index(f"<h3>{wrongest['path']}</h3>") == text.index("<h3>")


def test_a_map_of_saved_likelihoods_sums_to_the_margin(full):
    text = (full / "report.html").read_text()
    records = {r["path"]: r for r in map(json.loads, (full / "predictions.jsonl").read_text().splitlines())}
    for article in text.split("<article")[1:]:
        record = records[re.search(r"<h3>(.*?)</h3>", article)[1]]
        shown = re.search(r'<img [^>]*alt="map of [^"]*: sum (\S+) nats', article)[1]
        assert float(shown.replace("−", "-")) == pytest.approx(record["margin"], abs=0.051)


def test_a_run_that_does_not_say_where_its_tokens_are_has_no_maps_and_says_why(bare, tmp_path, capsys):
    run = shutil.copytree(bare, tmp_path / "run")
    changed(run, places={})  # as those of earlier versions
    assert main(["report", "--overwrite", str(run), "--allow-outside"]) == 0
    assert "saved no likelihoods" in capsys.readouterr().err
    text = (run / "report.html").read_text()
    assert "No maps of the hardest images" in text and "--tokens CACHE" in text
    page = Page(text)
    assert len(page.images) == 8  # the pictures are there all the same
    assert "As the plan says" in text


def test_maps_are_computed_from_the_cache_that_is_recorded_or_given(bare, made, tmp_path):
    folder, models = made
    out = tmp_path / "page.html"
    for given in ([], ["--tokens", str(folder / "t.h5"), *models]):
        assert main(["report", "--overwrite", str(bare), *given, "--out", str(out)]) == 0
        assert len(Page(out.read_text()).images) == WITH_MAPS


def test_a_staged_run_that_saved_likelihoods_has_maps_of_the_last_stage(made, tmp_path):
    run = classify(made, "staged", "--plan", "2:3,4:1", "--save-likelihood")
    assert main(["report", "--overwrite", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert "No maps" not in text and text.count('alt="map of') >= 8 and "unconditional" not in text


def test_a_run_on_images_keeps_its_tokens_and_finds_its_model_by_name(tmp_path, made):
    digit = tmp_path / "zero.png"
    Image.new("RGB", (16, 16)).save(digit)
    assert main(["-q", "classify", str(digit), "--out", str(tmp_path / "run")]) == 0
    assert main(["report", "--overwrite", str(tmp_path / "run")]) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert "vs unconditional" in text
    assert "No image has a label" in text


def test_another_model_or_other_images_are_refused(bare, made, tmp_path, capsys):
    folder, models = made
    cache = ["--tokens", str(folder / "t.h5")]
    assert main(["report", "--overwrite", str(bare), *cache, "--model", "digits"]) == 2
    assert "is not the model of the run" in capsys.readouterr().err
    one = tmp_path / "one.h5"
    first = next((folder / "img").glob("*/00.png"))
    assert main(["-q", "encode", str(first), *models, "--preprocess", "none", "--out", str(one)]) == 0
    assert main(["report", "--overwrite", str(bare), "--tokens", str(one), *models]) == 2
    assert "other images than the run" in capsys.readouterr().err


@pytest.fixture(scope="module")
def banks(made):
    """Two banks of one and the same class, with other offsets."""
    folder, models = made
    words = ["new", str(folder / "img" / "0"), *models, "--preprocess", "none", "--no-offset"]
    words += ["--method", "lora", "--rank", "1", "--steps", "1", "--batch-size", "1", "--variants", "1"]
    assert main(["-q", "add-class", *words, "--bank", str(folder / "a")]) == 0
    shutil.copytree(folder / "a", folder / "b")
    bank = json.loads((folder / "b" / "bank.json").read_text())
    bank["classes"][0]["offset"] = 1.0
    (folder / "b" / "bank.json").write_text(json.dumps(bank))
    return folder / "a", folder / "b"


def test_a_run_with_a_bank_is_explained_with_that_bank_only(banks, bare, made, tmp_path, capsys):
    folder, models = made
    a, b = (["--bank", str(bank)] for bank in banks)
    words = [*models, "--tokens", str(folder / "t.h5"), "--out", str(tmp_path / "page.html")]
    run = classify(made, "added", *a)
    assert main(["report", "--overwrite", str(run), *words, *a]) == 0
    assert main(["report", "--overwrite", str(run)]) == 0
    assert main(["report", "--overwrite", str(run), *words, *b]) == 2
    message = capsys.readouterr().err
    assert "made with another class bank" in message and "add --bank DIR" in message
    assert main(["report", "--overwrite", str(bare), *words, *a]) == 2
    assert "made without a class bank" in capsys.readouterr().err


def test_a_run_is_explained_in_its_own_precision_and_with_its_class_names(made, tmp_path, monkeypatch):
    folder, models = made
    (tmp_path / "names.txt").write_text("".join(f"thing {i}\n" for i in range(10)))
    names = ["--class-names", str(tmp_path / "names.txt")]
    run = classify(made, "half", "--precision", "bf16", *names)
    loaded = []
    monkeypatch.setattr(classifier, "load_model", lambda *a, **k: loaded.append(load_model(*a, **k)) or loaded[0])
    assert main(["report", "--overwrite", str(run), "--tokens", str(folder / "t.h5"), *models, *names]) == 0
    assert [model.precision for model in loaded] == ["bf16"]
    assert re.search(r'alt="map of thing \d vs thing \d', (run / "report.html").read_text())


def test_a_run_with_an_adapter_is_explained_with_it(made, tmp_path, capsys):
    """The run's name of the model, "digits with adapter", leads back to digits."""
    out, into = load_model("digits").likelihood.var.blocks[0].ffn.fc1.weight.shape
    prefix, digit, adapter = "base_model.model.blocks.0.ffn.fc1", tmp_path / "zero.png", tmp_path / "adapter"
    tensors = {f"{prefix}.lora_A.weight": torch.ones(1, into), f"{prefix}.lora_B.weight": torch.ones(out, 1)}
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 0.01}))
    Image.new("RGB", (16, 16)).save(digit)
    lora = ["--lora", str(adapter)]
    assert main(["-q", "classify", str(digit), *lora, "--out", str(tmp_path / "run")]) == 0
    for given in ([], lora):
        assert main(["report", "--overwrite", str(tmp_path / "run"), *given]) == 0
        assert "vs unconditional" in (tmp_path / "run" / "report.html").read_text()
    changed(tmp_path / "run", places={"model": {"given": "digits"}})  # as a run that does not record it
    assert main(["report", "--overwrite", str(tmp_path / "run")]) == 0
    assert "add the adapter of the run: --lora DIR" in capsys.readouterr().err


def test_zero_hardest_images_leave_the_page_without_images(full, tmp_path):
    assert main(["report", "--overwrite", str(full), "--hardest", "0", "--out", str(tmp_path / "a.html")]) == 0
    assert not Page((tmp_path / "a.html").read_text()).images


def test_an_unfinished_run_is_refused(copy, capsys):
    (copy / "predictions.jsonl").rename(copy / "predictions.jsonl.part")
    assert main(["report", "--overwrite", str(copy)]) == 2
    assert "not finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("run.json", "{}"),
        ("run.json", '{"plan": "4:1", "candidates": [0], "tokens": {}, "model": {"name": "m"}}'),
        ("metrics.json", "[]"),
        ("metrics.json", '{"images": 12}'),
        (
            "metrics.json",
            '{"images": 12, "labelled": 12, "near_ties": 0, "tokens_scored_per_image": 1, "bits_per_token": 1, '
            '"accuracy": 1, "accuracy_95": [0, 1], "correct": 12, "top_k": {}, "expected_calibration_error": "low"}',
        ),
        ("predictions.jsonl", "x\n"),
        ("predictions.jsonl", "3\n"),
        ("predictions.jsonl", '{"index": 0}\n'),
        ("predictions.jsonl", ""),
        ("json/3.json", "{}"),
        ("json/3.json", '{"stages": [{"survivors": [0], "log_likelihood": [0, "x"]}]}'),
        ("json/3.json", "[" * 100_000),
        ("run.json", "[" * 100_000),
        ("predictions.jsonl", "[" * 100_000),
        ("metrics.json", "[" * 100_000),
        ("metrics.json", '{"images": ' + "9" * 5000 + "}"),
    ],
)
def test_a_damaged_run_is_refused(copy, capsys, name, content):
    (copy / name).write_text(content)
    assert main(["report", "--overwrite", str(copy)]) == 1
    message = capsys.readouterr().err
    assert ("is corrupt" in message or "cannot read" in message) and "bug" not in message
    assert "copy" in message


def test_a_damaged_likelihood_removes_the_maps_but_not_the_page(copy, capsys):
    for file in (copy / "likelihood").iterdir():
        file.write_bytes(b"no zip")
    assert main(["report", "--overwrite", str(copy)]) == 0
    assert "is corrupt" in capsys.readouterr().err
    assert "No maps of the hardest images" in (copy / "report.html").read_text()


def changed(run, **values):
    """A run.json that somebody else might have written: the digest of one that was made here would not fit."""
    there = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(there | values))
    return there


def count_pictures(run, *options):
    assert main(["report", str(run), "--overwrite", *options]) == 0
    return len(Page((run / "report.html").read_text()).images)


def test_a_run_that_was_not_made_here_shows_no_images_outside_of_its_folder(bare, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(bare, run)
    assert count_pictures(run) == WITH_MAPS  # a copy of one's own run
    source = changed(run, threads=99)["tokens"]["source"]
    assert count_pictures(run) == 0
    assert "--allow-outside" in capsys.readouterr().err
    assert count_pictures(run, "--allow-outside") == WITH_MAPS
    shutil.copytree(source, run / "img")
    changed(run, tokens=changed(run)["tokens"] | {"source": str(run / "img")})
    assert count_pictures(run) == 8
    shutil.rmtree(run / "img")
    (run / "img").symlink_to(source)
    assert count_pictures(run) == 0


@pytest.mark.parametrize("name", ["../{}", "{folder}/{}", "x/../../{}"])
def test_a_prediction_does_not_lead_out_of_the_source(bare, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(bare, run)
    source = Path(json.loads((run / "run.json").read_text())["tokens"]["source"])
    Image.new("RGB", (64, 64)).save(source.parent / "secret.png")
    path = name.format("secret.png", folder=source.parent)
    lines = [json.loads(line) | {"path": path} for line in (run / "predictions.jsonl").read_text().splitlines()]
    (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert count_pictures(run) == 0


def test_a_run_that_was_not_made_here_does_not_choose_a_file_as_its_model(bare, made, tmp_path, capsys):
    run, (folder, models) = tmp_path / "run", made
    shutil.copytree(bare, run)
    changed(run, model=json.loads((run / "run.json").read_text())["model"] | {"name": models[1]})
    words = ["report", str(run), "--tokens", str(folder / "t.h5"), "--out", str(tmp_path / "page.html")]
    assert main([*words, *models[2:]]) == 2
    message = capsys.readouterr().err
    assert models[1] in message and "--allow-outside" in message
    assert main([*words, *models[2:], "--allow-outside", "--overwrite"]) == 0
    assert main([*words, *models, "--overwrite"]) == 0


def test_corrupt_tokens_are_not_explained(bare, made, tmp_path, capsys):
    folder, models = made
    broken = tmp_path / "t.h5"
    shutil.copyfile(folder / "t.h5", broken)
    with h5py.File(broken, "r+") as file:
        file["tokens"][0] ^= 1
    out = ["--out", str(tmp_path / "page.html")]
    assert main(["report", str(bare), "--tokens", str(broken), *models, *out]) == 1
    assert "/tokens of rows 0 to 11 differs" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--out", "report.pdf"], ["--hardest", "-1"], ["--hardest", "9999"]])
def test_wrong_requests_end_with_advice(full, words):
    assert main(["report", "--overwrite", str(full), *words]) == 2


def test_a_folder_that_is_not_a_run_is_refused(tmp_path, capsys):
    assert main(["report", "--overwrite", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_a_browser_shows_every_image_without_errors(ask, full):
    """The page itself is asked how many pictures were decoded, and whether a value appeared under the pointer: the 48
    of the page, and under the map of each of eight images a copy of the image."""
    question = """
        const map = document.querySelector('img[data-values]'), box = map.getBoundingClientRect();
        map.dispatchEvent(new PointerEvent('pointermove', {clientX: box.x + 2, clientY: box.y + 2, bubbles: true}));
        const images = [...document.images].filter(each => each.complete && each.naturalWidth > 0).length;
        const wide = document.documentElement.scrollWidth > innerWidth;
        return [images, wide, document.getElementById('value').textContent, document.body.dataset.failed || ''];
    """
    images, wide, tip, failed = ask(full / "report.html", question)
    assert (images, wide, failed) == (56, False, "")
    assert re.fullmatch(r"row 1, column 1: [+−]?[\d.]+ nats in this cell", tip)

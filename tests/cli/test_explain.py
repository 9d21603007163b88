"""avarc explain from the command line: files, choices of images and classes, and what people get wrong."""

import itertools
import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from avarc_cli import classifier
from avarc_cli.cli import main
from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.explain import token_scores
from avarc_cli.explain.pixels import pixels_of_cache, pixels_of_images, source_pixels
from avarc_cli.explain.predictions import ImagePrediction, select
from avarc_cli.loading import ModelSpec, load_tokenizer
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.tokens import encode, read


@pytest.fixture(scope="module")
def folder(tiny_files, tiny, tmp_path_factory):
    """Six images in folders named by class number; the first is a golden one, in the folder of its right class."""
    root = tmp_path_factory.mktemp("data") / "img"
    rng = np.random.default_rng(0)
    best = int(tiny.arrays["log_likelihood"][0, :10].argmax())
    for i in range(6):
        pixels = tiny.arrays["image_uint8"][0] if i == 0 else rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        path = root / str(best if i == 0 else (best + i) % 10) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def cache(folder, models):
    out = folder.parent / "t.h5"
    assert main(["-q", "encode", str(folder), *models, "--preprocess", "none", "--out", str(out)]) == 0
    return out


def explain(*words):
    return main(["explain", "--overwrite", *map(str, words)])


def explained(capsys, *words):
    assert explain(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


class Images(HTMLParser):
    """The pictures of a page, and anything that would need a network."""

    def __init__(self, text):
        super().__init__()
        self.alts, self.sources, self.values, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href", "srcset")]
        if tag == "img":
            self.alts.append(found["alt"])
            self.values += [found["data-values"].split()] if "data-values" in found else []


def test_arrays_hold_the_formula_on_the_references_log_probabilities(cache, models, tiny, tmp_path, capsys):
    row = next(i for i, path in enumerate(read(cache).paths) if path.endswith("0.png"))
    words = ["--rows", row, "--class", 2, "--vs", 7, "--out", tmp_path / "a.html", "--npz", tmp_path / "a.npz"]
    comparisons = explained(capsys, cache, *models, *words)["explained"][0]["comparisons"]
    golden = tiny.arrays["log_likelihood"][0]
    with np.load(tmp_path / "a.npz") as arrays:
        assert (arrays["row"], arrays["subject"], arrays["rival"]) == ([row], [2], [7])
        assert arrays["subject_name"] == ["2"] and arrays["path"][0].endswith("0.png")
        np.testing.assert_allclose(arrays["log_prob_subject"][0], tiny.arrays["token_log_prob"][0, 2], atol=2e-4)
        for name, (a, b) in {"map_subject": (2, 10), "map_rival": (7, 10), "map_contrast": (2, 7)}.items():
            assert arrays[name].shape == (1, 4, 4)
            assert arrays[name].sum() == pytest.approx(golden[a] - golden[b], abs=1e-3)
        np.testing.assert_allclose(arrays["scale_weight"], (np.arange(1, 5) / 4) ** 2)
    expected = [golden[a] - golden[b] for a, b in ((2, 10), (7, 10), (2, 7))]
    assert [t["log_likelihood_ratio"] for t in comparisons] == pytest.approx(expected, abs=1e-3)
    assert [t["map_sum"] for t in comparisons] == pytest.approx(expected, abs=1e-3)


def test_pictures_are_drawn_and_are_the_same_every_time(cache, models, tmp_path):
    assert explain(cache, *models, "--rows", "0-1", "--out", tmp_path / "two.png") == 0
    assert Image.open(tmp_path / "two.png").size == (1560, 1560)
    for name in ("a.svg", "b.svg"):
        assert explain(cache, *models, "--rows", "0", "--out", tmp_path / name) == 0
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_page_needs_nothing_else_and_tells_every_value(cache, models, tmp_path):
    assert explain(cache, *models, "--out", tmp_path / "a.html", "--npz", tmp_path / "a.npz") == 0
    page = Images((tmp_path / "a.html").read_text())
    assert all(source.startswith("data:") for source in page.sources)
    assert page.tags.count("article") == 6
    assert len(page.alts) == 6 * (1 + 3 + 4) and all(page.alts)
    with np.load(tmp_path / "a.npz") as arrays:
        shown = [float(v.replace("−", "-")) for v in page.values[0]]
        np.testing.assert_allclose(shown, arrays["map_subject"][0].ravel(), atol=6e-4)


def test_a_cache_is_shown_in_the_order_of_surprise(cache, models, tmp_path, capsys):
    images = explained(capsys, cache, *models, "--out", tmp_path / "a.html")["explained"]
    surprises = [t["surprise"] for t in images]
    assert len(images) == 6 and surprises == sorted(surprises, reverse=True)
    few = explained(capsys, cache, *models, "--out", tmp_path / "a.html", "--limit", 2)["explained"]
    assert few == images[:2]


def test_processes_on_devices_explain_a_cache_in_the_same_bytes(folder, cache, models, tmp_path, capsys):
    command = [cache, *models, "--limit", 2, "--batch-size", 20, "--plan", "2:3,4:1", "--out"]
    names = ("a.html", "b.html")
    for name, devices in zip(names, ([], ["--devices", "cpu:2"]), strict=True):
        assert explain(*command, tmp_path / name, "--npz", tmp_path / f"{name}.npz", *devices) == 0
    for suffix in ("", ".npz"):
        first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in names)
        assert first == second
    capsys.readouterr()
    assert explain(folder, *models, "--devices", "cpu:2", "--out", tmp_path / "c.html") == 2
    assert "--devices divides a token cache" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 4


def test_processes_on_devices_explain_a_run_in_the_same_bytes(cache, models, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["classify", str(cache), *models, "--out", str(run)]) == 0
    for name, devices in (("one", []), ("two", ["--devices", "cpu:2"])):
        words = ["--rows", "1,4,0", "--out", tmp_path / f"{name}.html", "--npz", tmp_path / f"{name}.npz"]
        assert explain(run, *words, *devices) == 0
    assert explain(run, "--steps", "3", "--unsmooth", "0.1", "--out", tmp_path / "x.html") == 2
    assert "no use for --steps, --unsmooth" in " ".join(capsys.readouterr().err.split())
    for suffix in ("html", "npz"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 5


def test_interrupted_explanations_are_continued_and_a_damaged_one_is_made_again(cache, models, tmp_path, monkeypatch):
    run, out, maps = tmp_path / "run", tmp_path / "a.html", tmp_path / "a.html.maps"
    assert main(["classify", str(cache), *models, "--out", str(run)]) == 0
    assert explain(run, "--rows", "0-4", "--out", tmp_path / "whole.html") == 0
    scored, calls = token_scores.order_log_probs, []

    def stop_at(last):
        def count(model, tokens_1L, *rest):
            calls.append(tokens_1L.numpy().tobytes())
            if len(calls) == last:
                raise KeyboardInterrupt
            return scored(model, tokens_1L, *rest)

        calls.clear()
        monkeypatch.setattr(token_scores, "order_log_probs", count)

    stop_at(4)
    assert explain(run, "--rows", "0-4", "--out", out) == 130 and not out.exists()
    assert sorted(path.name for path in maps.iterdir()) == [*(f"00000{i}.npz" for i in range(3)), "request.json"]
    (maps / "000001.npz").write_bytes((maps / "000001.npz").read_bytes()[:-40])
    before = calls.copy()
    stop_at(None)
    assert explain(run, "--rows", "0-4", "--out", out) == 0
    assert calls == [before[3], calls[1], before[1]], "those that are missing, then the damaged one"
    assert out.read_bytes() == (tmp_path / "whole.html").read_bytes() and not maps.exists()
    stop_at(2)
    assert explain(run, "--rows", "0-4", "--out", out) == 130 and maps.exists()
    stop_at(None)
    assert explain(run, "--rows", "2", "--out", out) == 0, "another request begins"
    assert len(calls) == 1 and not maps.exists()


def test_an_interrupted_classification_is_continued(cache, models, tmp_path, monkeypatch, capsys):
    out, extend, calls = tmp_path / "a.html", VARLikelihood.extend, itertools.count()

    def stop_half_way(*args, **options):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return extend(*args, **options)

    words = ["explain", str(cache), *models, "--batch-size", "10", "--out", str(out)]
    with monkeypatch.context() as patched:
        patched.setattr(VARLikelihood, "extend", stop_half_way)
        assert main(words) == 130
    assert "of 6 images are kept in" in capsys.readouterr().err and not out.exists()
    assert main([*words, "--plan", "2:3,4:1"]) == 2, "that is another request"
    assert "holds another run" in capsys.readouterr().err
    assert main([*words, "--json"]) == 0
    continued = json.loads(capsys.readouterr().out)["explained"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    assert continued == explained(capsys, cache, *models, "--batch-size", 10, "--out", out)["explained"]


def test_listed_images_and_rows_stay_in_their_order(folder, cache, models, tmp_path, capsys):
    files = open_images([folder]).paths[2::-1]
    shown = explained(capsys, *files, *models, "--preprocess", "none", "--out", tmp_path / "a.html")["explained"]
    assert [t["path"] for t in shown] == [path.as_posix() for path in files]
    shown = explained(capsys, cache, *models, "--rows", "4,1", "--out", tmp_path / "a.html")["explained"]
    assert [t["row"] for t in shown] == [4, 1]


def test_only_wrong_and_only_right_share_out_the_images(cache, models, tmp_path, capsys):
    out = ["--out", tmp_path / "a.html"]
    right = explained(capsys, cache, *models, *out, "--only", "right")["explained"]
    wrong = explained(capsys, cache, *models, *out, "--only", "wrong")["explained"]
    assert all(t["prediction"] == t["label"] for t in right) and all(t["prediction"] != t["label"] for t in wrong)
    assert sorted(t["row"] for t in right + wrong) == list(range(6))


def test_unsure_means_a_low_probability():
    sure = [
        ImagePrediction(row=i, path=str(i), class_ids=(0, 1), posterior=(p, 1 - p))
        for i, p in enumerate((0.95, 0.6, 0.9, 0.7))
    ]
    assert [v.row for v in select(sure, "unsure", 9, sort=True)] == [1, 3]
    assert [v.row for v in select(sure, None, 2, sort=True)] == [1, 3]


def test_a_class_can_be_compared_with_the_label(cache, models, tmp_path, capsys):
    shown = explained(capsys, cache, *models, "--vs", "label", "--only", "wrong", "--out", tmp_path / "a.html")
    for t in shown["explained"]:
        assert t["comparisons"][-1]["maps"] == f"{t['prediction']} vs {t['label']}"


def test_scales_and_uniform_weights_change_the_sum_as_documented(cache, models, tmp_path, capsys):
    def arrays(*words):
        assert (
            explain(cache, *models, "--rows", 0, "--out", tmp_path / "a.html", "--npz", tmp_path / "a.npz", *words) == 0
        )
        with np.load(tmp_path / "a.npz") as file:
            return {name: file[name] for name in file.files}

    plain, part, uniform = arrays(), arrays("--scales", "2-3"), arrays("--weighting", "uniform")
    token = (plain["log_prob_subject"].astype(float) - plain["log_prob_rival"])[0]
    assert plain["map_contrast"].sum() == pytest.approx(token.sum(), abs=1e-6)
    assert part["map_contrast"].sum() == pytest.approx(token[1:14].sum(), abs=1e-6)
    weight = np.repeat([16, 4, 16 / 9, 1], [1, 4, 9, 16])
    assert uniform["map_contrast"].sum() == pytest.approx((token * weight).sum(), abs=1e-6)


def test_an_image_that_is_gone_is_decoded_from_its_tokens(folder, models, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(next(folder.glob("*/1.png")).read_bytes())
    assert main(["-q", "encode", str(copy), *models, "--preprocess", "none", "--out", str(tmp_path / "t.h5")]) == 0
    for gone in (False, True):
        if gone:
            copy.unlink()
        assert explain(tmp_path / "t.h5", *models, "--out", tmp_path / "a.html") == 0
        assert ("decoded from its tokens" in (tmp_path / "a.html").read_text()) == gone


def test_objectnets_border_is_not_shown(models, tmp_path):
    """As the tokenizer saw it: from the images, from their cache, and from a run."""
    inside = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    framed = np.full((68, 68, 3), (255, 0, 0), dtype=np.uint8)
    framed[2:-2, 2:-2] = inside
    path = tmp_path / "objectnet" / "0" / "a.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(framed).save(path)
    images = replace(open_images([path]), dataset="objectnet")
    tokenizer = load_tokenizer(ModelSpec(models[1], models[3]))
    preprocess = Preprocess("none", 64)
    encode(images, tokenizer, preprocess, tmp_path / "t.h5")
    cache = read(tmp_path / "t.h5")
    for pixels in (pixels_of_images(images, cache), pixels_of_cache(cache, tokenizer)):
        shown, decoded = pixels(0)
        assert not decoded and (shown == inside).all()
    assert (source_pixels(path.as_posix(), "a.png", "none 64", "objectnet") == inside).all()
    assert source_pixels(path.as_posix(), "a.png", "none 64", "") is None, "68 x 68 pixels are no 64 x 64"


@pytest.mark.parametrize(("limit", "message"), [(0, "at least 1"), (41, "at most 40")])
def test_a_wrong_limit_is_refused_before_loading(cache, models, tmp_path, monkeypatch, capsys, limit, message):
    monkeypatch.setattr(classifier, "load_classifier", lambda *a, **k: pytest.fail("loaded"))
    assert explain(cache, *models, "--out", tmp_path / "a.png", "--limit", limit) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "bathtub"], "not classes of"),
        (["--vs", "bathtub"], "not classes of"),
        (["--class", "3", "--vs", "3"], "with itself"),
        (["--class", "1,2"], "2 classes"),
        (["--rows", "6"], "rows 0 to 5"),
        (["--rows", "2-9"], "rows 0 to 5"),
        (["--rows", "x"], "3,10-12"),
        (["--only", "blue"], "wrong, right, unsure"),
        (["--limit", "0"], "at least 1"),
        (["--limit", "100"], "at most 40"),
        (["--scales", "3-9"], "scales 1 to 4"),
        (["--scales", "all"], "4-10"),
        (["--weighting", "equal"], "paper and uniform"),
        (["--upsample", "cubic"], "area and nearest"),
        (["--out", "why.pdf"], "no format '.pdf'"),
        (["--out", "why"], ".html or .htm or .png or .svg"),
        (["--npz", "why.h5"], "npz"),
        (["--preprocess", "fit"], "encoded already"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_requests_end_with_advice(cache, models, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert explain(cache, *models, *words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unlabelled_images_are_neither_wrong_nor_right(tiny_files, models, tmp_path, capsys):
    words = [tiny_files / "img", *models, "--preprocess", "none", "--out", tmp_path / "a.png"]
    assert explain(*words, "--only", "wrong") == 2
    assert "cannot tell which images are wrong" in capsys.readouterr().err
    assert explain(*words, "--class", "label") == 2
    assert ".png' is unknown" in capsys.readouterr().err


def test_a_folder_in_the_place_of_the_picture_is_refused(cache, models, tmp_path, capsys):
    (tmp_path / "a.png").mkdir()
    assert explain(cache, *models, "--out", tmp_path / "a.png") == 2
    assert "it is a folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert explain(cache, *models, "--out", tmp_path / "file" / "a.png") == 1
    assert "the operating system refused" in capsys.readouterr().err


def test_an_unreadable_image_is_left_out_and_named(folder, models, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good = next(folder.glob("*/2.png"))
    words = [good, tmp_path / "broken.png", *models, "--preprocess", "none", "--out", tmp_path / "a.html"]
    assert explain(*words) == 3
    assert "broken.png" in capsys.readouterr().err
    assert (tmp_path / "a.html").exists()


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_any_file_name_can_be_shown(folder, models, tmp_path, suffix):
    odd = tmp_path / "a $x^$ <b>&amp; 日本 \udcff\n.png"
    odd.write_bytes(next(folder.glob("*/2.png")).read_bytes())
    out = tmp_path / f"out.{suffix}"
    assert explain(odd, *models, "--preprocess", "none", "--out", out) == 0
    if suffix == "html":
        assert "a $x^$ &lt;b&gt;&amp;amp; 日本 \\udcff" in out.read_text()

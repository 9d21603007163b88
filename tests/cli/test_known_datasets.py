"""encode and classify on known datasets: labels, candidates and what counts as right."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from avarc_cli.classifier import Classifier, Options
from avarc_cli.cli import main
from avarc_cli.data import LabelSpace, datasets, imagenet1k
from avarc_cli.data.label_mapping import map_labels
from avarc_cli.errors import UsageError
from avarc_cli.results.metrics import compute
from avarc_cli.results.records import CandidateLabels, RunImage, line
from avarc_cli.scoring.scores import ImageScores
from avarc_cli.tokens import read

CLASSES = (  # of the tiny model, by synset: two clocks, three chairs, and five others
    *("n02708093", "n03196217", "n02791124", "n03376595", "n04099969"),
    *("n02769748", "n01443537", "n01440764", "n01484850", "n01491361"),
)


@pytest.fixture(scope="module")
def models(tiny_files):
    names = tiny_files / "synsets.txt"
    names.write_text("\n".join(CLASSES))
    tokenizer = ["--model", str(tiny_files / "VAR.pth"), "--tokenizer", str(tiny_files / "VAE.pth")]
    return tokenizer, ["--class-names", str(names)]


@pytest.fixture(scope="module")
def objectnet(tmp_path_factory):
    """Eight clocks, eight chairs, and two of an object that ImageNet has no class for; a border of 2 pixels."""
    root = tmp_path_factory.mktemp("data") / "objectnet-1.0"
    rng = np.random.default_rng(0)
    for i in range(18):
        folder = root / "images" / ("alarm_clock", "chair", "air_freshener")[i // 8]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((68, 68, 3), dtype=np.uint8)
        pixels[2:-2, 2:-2] = rng.integers(0, 256, (64, 64, 3))
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return root


def test_a_prediction_of_objectnet_counts_if_it_maps_to_the_images_object(objectnet, models, tmp_path, capsys):
    tokenizer, class_names = models
    cache = tmp_path / "t.h5"
    assert main(["encode", str(objectnet), *tokenizer, "--preprocess", "none", "--out", str(cache)]) == 0
    message = capsys.readouterr().err
    assert "recognized ObjectNet" in message and "left out 2 images of 1 object without" in message
    assert read(cache).header.dataset == "objectnet" and len(read(cache)) == 16
    out = tmp_path / "run"
    assert main(["--quiet", "classify", str(cache), *tokenizer, *class_names, "--out", str(out)]) == 0
    right = {"alarm_clock": {0, 1}, "chair": {2, 3, 4}}
    records = [json.loads(text) for text in (out / "predictions.jsonl").read_text().splitlines()]
    for record in records:
        assert record["label_id"] == record["path"].split("/")[1]
        assert (record["label_rank"] == 0) == (record["prediction"] in right[record["label_id"]])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["labelled"] == 16
    assert metrics["accuracy"] == np.mean([r["prediction"] in right[r["label_id"]] for r in records])
    assert metrics["per_class"]["chair"]["name"] == "Chair"


def test_a_subset_keeps_the_objects_that_it_names(objectnet, models, tmp_path):
    (tmp_path / "mine.txt").write_text("air_freshener\nChair\n")
    out = tmp_path / "t.h5"
    options = ["--preprocess", "none", "--subset", str(tmp_path / "mine.txt"), "--per-class", "1"]
    assert main(["encode", str(objectnet), *models[0], *options, "--out", str(out)]) == 0
    assert read(out).header.class_names == ("air_freshener", "chair") and len(read(out)) == 2


def test_images_that_are_given_directly_are_recognized_as_well(objectnet, models, tmp_path, capsys):
    tokenizer, class_names = models
    options = ["--preprocess", "none", "--limit", "3"]
    assert main(["--json", "classify", str(objectnet), *tokenizer, *class_names, *options]) == 0
    message = capsys.readouterr()
    assert json.loads(message.out)["metrics"]["labelled"] == 3
    assert main(["classify", str(objectnet), *tokenizer, *class_names, *options, "--dataset", "imagenet-r"]) == 2
    assert "is not ImageNet-R" in capsys.readouterr().err


def scores(order, candidates: int) -> ImageScores:
    """An image's scores by the order of its candidates, best first."""
    values = np.full(candidates, -1000.0)
    values[list(order)] = -np.arange(len(order), dtype=float)
    rest = [c for c in range(candidates) if c not in order]
    stage = {"tokens": 1, "samples": 1, "orders": 1, "estimated": False, "precision": None}
    return SimpleNamespace(
        order=np.array([*order, *rest]),
        scores=values,
        stages=(SimpleNamespace(candidates=np.arange(candidates), log_likelihood=values, **stage),),
        reached=np.ones(candidates, dtype=np.int64),
        posterior=np.full(candidates, 1 / candidates),
        margin=1.0,
        tokens_scored=1,
        settled=None,
    )


def test_ranks_and_accuracy_follow_the_map_by_hand():
    """Chairs are 423, 559 and 765; clocks 409 and 530; a banana is 954; 0 is a tench."""
    targets = map_labels(("alarm_clock", "banana", "chair", "spork"), "objectnet", imagenet1k())
    labels = CandidateLabels(imagenet1k(), np.arange(1000), targets)
    cases = [  # dataset class, order of predictions, expected rank
        (2, (765, 0, 423), 0),
        (2, (0, 559, 423), 1),
        (0, (530,), 0),
        (0, (423, 0, 954, 530, 409), 3),
        (1, (954,), 0),
        (3, (954,), None),  # an object that ImageNet has no class for
        (-1, (954,), None),
    ]
    records = []
    for i, (label, order, rank) in enumerate(cases):
        image = RunImage(i, f"{i}.png", int(targets.to_model(np.array([label]))[0]))
        record = line(image, scores(order, 1000), labels, num_tokens=1, precision="fp32")
        assert record["label_rank"] == rank, (label, order)
        records.append(record)
    assert [r["label_id"] for r in records] == ["chair", "chair", "alarm_clock", "alarm_clock", "banana", None, None]
    assert records[0]["label_name"] == "Chair"
    metrics = compute(records, seconds=1.0, candidates=1000)
    assert (metrics["labelled"], metrics["correct"], metrics["accuracy"]) == (5, 3, 0.6)
    assert metrics["top_k"] == {"1": 0.6, "3": 0.8, "5": 1.0}
    assert {name: c["accuracy"] for name, c in metrics["per_class"].items()} == {
        "chair": 0.5,
        "alarm_clock": 0.5,
        "banana": 1.0,
    }


def test_only_some_of_an_objects_classes_may_be_candidates():
    targets = map_labels(("chair",), "objectnet", imagenet1k())
    labels = CandidateLabels(imagenet1k(), np.array([0, 765]), targets)
    image = RunImage(0, "0.png", int(targets.label[0]))
    assert line(image, scores((1,), 2), labels, num_tokens=1, precision="fp32")["label_rank"] == 0
    none = CandidateLabels(imagenet1k(), np.array([0, 1]), targets)
    assert line(image, scores((1,), 2), none, num_tokens=1, precision="fp32")["label_rank"] is None


def classifier(space: LabelSpace, **options) -> Classifier:
    likelihood = SimpleNamespace(num_classes=len(space), unconditional=None, segment_ends=(1,), any_order=False)
    return Classifier(
        SimpleNamespace(
            likelihood=likelihood,
            classes=space,
            name="stub",
            offsets=np.zeros(len(space)),
            loader=lambda: None,
            device="cpu",
            precision="fp32",
        ),
        Options(**options),
    )


def test_the_dataset_chooses_the_candidates_unless_the_user_does():
    known = datasets()["imagenet-r"]
    chosen = classifier(imagenet1k(), dataset="imagenet-r")
    assert chosen.candidates.tolist() == list(known.candidates) and chosen.candidates_of == "ImageNet-R"
    assert len(classifier(imagenet1k(), dataset="imagenet-r", classes="all").candidates) == 1000
    assert len(classifier(imagenet1k(), dataset="imagenet-r", classes="imagenetr100").candidates) == 100
    assert len(classifier(imagenet1k(), dataset="objectnet").candidates) == 125
    assert len(classifier(imagenet1k(), dataset="imagenet-val").candidates) == 1000
    assert len(classifier(LabelSpace("two", ("a", "b"), ("a", "b")), dataset="imagenet-r").candidates) == 2


def test_classify_passes_the_dataset_to_the_classifier(objectnet, models, tmp_path, monkeypatch):
    """Of images and of a cache alike: the tiny model has too few classes to see it in the candidates."""
    asked = []

    def remember(spec, options, **others):
        asked.append(options.dataset)
        raise UsageError("seen")

    cache = tmp_path / "t.h5"
    assert (
        main(["encode", str(objectnet), *models[0], "--preprocess", "none", "--limit", "1", "--out", str(cache)]) == 0
    )
    monkeypatch.setattr("avarc_cli.classifier.load_classifier", remember)
    for data in (cache, objectnet):
        assert main(["classify", str(data), *models[0]]) == 2
    assert asked == ["objectnet", "objectnet"]

"""Classification of continuous tokens, by a model that is computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from stub_tokenizer import StubVAE, make_images

from avarc_cli.data import Preprocess
from avarc_cli.data.labels import LabelSpace
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.records import CandidateLabels
from avarc_cli.results.run import Run, classify
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function
from avarc_cli.tokens import encode, read

NAMES = ("red", "green", "blue")


class Colors(LikelihoodModel):
    """Class c expects channel c of every token to be 1 and the others 0: log p is minus the squared distance."""

    segment_ends = (1, 4)
    num_classes = 3
    unconditional = None
    flops_per_token = 1
    channels = 3

    def begin(self, tokens_BL, sequence_P, class_id_P, order_BL=None):
        assert tokens_BL.shape[1:] == (4, 3) and tokens_BL.dtype == torch.float32
        return {"tokens": tokens_BL[sequence_P], "class": class_id_P, "at": 0}

    def extend(self, state, stop, *, keep_cache_segments):
        start, end = (0, *self.segment_ends)[state["at"]], self.segment_ends[stop - 1]
        state["at"] = stop
        expected_P1Z = torch.eye(3)[state["class"]][:, None]
        return -((state["tokens"][:, start:end] - expected_P1Z) ** 2).sum(-1)

    def select(self, state, keep_Q):
        return state | {"tokens": state["tokens"][keep_Q], "class": state["class"][keep_Q]}

    def fork(self, *args, **options):
        raise NotImplementedError("no two samples share a token")

    def sample(self, *args, **options):
        raise NotImplementedError("nothing is sampled here")

    def bytes_per_token(self, *, cached):
        return 1


@pytest.fixture
def run(tmp_path):
    """Makes the run of the images as they are now, after encoding those that changed."""
    images = make_images(tmp_path / "images", 9)

    def make(plan="1:2,2:1:3"):
        encode(images, StubVAE(), Preprocess("none", 8), tmp_path / "t.h5", samples=3, chunk_size=1)
        request = ScoringRequest(
            candidates=np.arange(3),
            plan=parse_plan(plan, segments=2, candidates=3, samples=3),
            score=score_function("log-likelihood"),
            log_prior=np.zeros(3),
            tokens_per_batch=24,
        )
        labels = CandidateLabels(LabelSpace("colors", NAMES, NAMES), np.arange(3))
        return Run(
            model=Colors(),
            cache=read(tmp_path / "t.h5"),
            labels=np.arange(9) % 3,
            request=request,
            candidate_labels=labels,
            precision="fp32",
            protocol={"plan": plan},
        )

    return make


def test_scores_are_those_of_the_definition(run):
    job = run("exhaustive:3")
    tokens = job.cache.tokens(range(9)).astype(np.float64)
    scores = -((tokens[:, :, :, None] - np.eye(3)) ** 2).sum((2, 4)).mean(1)  # images, samples, tokens, classes
    result = classify(job, None, keep_scores=True)
    for expected, (_, found) in zip(scores, result.scores, strict=True):
        assert np.abs(found.scores - expected).max() < 1e-5
    assert [record["prediction_id"] for record in result.records] == [NAMES[c] for c in scores.argmax(1)]


def test_a_finished_run_is_kept_and_an_image_that_changed_is_scored_again(run, tmp_path):
    folder = RunFolder(tmp_path / "run")
    before = list(classify(run(), folder).records)  # read when they are used
    assert [r["prediction"] for r in classify(run(), folder).records] == [r["prediction"] for r in before]
    path = tmp_path / "images" / "even" / "004.png"
    row = [record["path"] for record in before].index("even/004.png")
    Image.new("RGB", (8, 8), (120, 255, 120)).save(path)
    job = run()
    scored = []
    job.model.begin = lambda *args: scored.append(args[0]) or Colors.begin(job.model, *args)
    after = classify(job, folder).records
    assert scored and len(scored) < 9
    assert after[row]["prediction_id"] == "green"
    assert before[row]["tokens_digest"] != after[row]["tokens_digest"]
    others = [i for i in range(9) if i != row]
    assert [before[i]["tokens_digest"] for i in others] == [after[i]["tokens_digest"] for i in others]

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avarc_cli.results.metrics import compute, wilson
from avarc_cli.scoring.scores import near_tie, posterior


def record(label, rank, **more):
    known = label is not None
    base = {
        "label": label,
        "label_id": str(label) if known else None,
        "label_name": "x",
        "label_rank": rank,
        "near_tie": False,
    }
    return base | {"tokens_scored": 10, "bits_per_token": 2.0, "posterior": 0.75} | more


def test_the_interval_is_wilsons():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson (1927) by hand
    assert wilson(10, 10)[1] == 1.0 and wilson(0, 10)[0] == 0.0 and wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500), st.data())
def test_the_interval_holds_the_proportion(total, data):
    right = data.draw(st.integers(0, total))
    low, high = wilson(right, total)
    assert 0 <= low <= right / total <= high <= 1


def test_metrics_of_four_images_by_hand():
    records = [record(0, 0), record(0, 1), record(1, 0, near_tie=True), record(None, None), record(7, None)]
    m = compute(records, seconds=10.0, candidates=3)
    assert (m["images"], m["labelled"], m["correct"], m["label_not_a_candidate"], m["near_ties"]) == (5, 3, 2, 1, 1)
    assert m["accuracy"] == pytest.approx(2 / 3) and m["top_k"] == {"1": m["accuracy"]}
    assert m["per_class"] == {
        "0": {"name": "x", "images": 2, "accuracy": 0.5},
        "1": {"name": "x", "images": 1, "accuracy": 1.0},
    }
    assert m["seconds_per_image"] == 2.0 and m["bits_per_token"] == 2.0
    assert m["expected_calibration_error"] == pytest.approx(0.75 - 2 / 3), "all are in one bin of confidence"


def test_without_labels_there_is_no_accuracy():
    m = compute([record(None, None)], seconds=1.0, candidates=3)
    assert m["labelled"] == 0 and "accuracy" not in m


def test_the_posterior_of_one_stage_is_the_softmax():
    assert posterior(np.log([[1, 2, 5]])) == pytest.approx([1 / 8, 2 / 8, 5 / 8])


def test_survivors_share_what_their_stage_left_them():
    first, second = np.log([1, 2, 5]), np.array([np.nan, np.log(3), 0.0])
    expected = [1 / 8, 7 / 8 * 3 / 4, 7 / 8 / 4]
    assert posterior(np.stack([first, second])) == pytest.approx(expected)
    decided = np.full(3, np.nan)
    both = posterior(np.stack([np.stack([first, first]), np.stack([second, decided])]))
    assert both == pytest.approx(np.array([expected, [1 / 8, 2 / 8, 5 / 8]])), "an image decided after one stage"


def test_a_temperature_flattens_the_posterior():
    assert posterior(np.log([[1, 4, 25]]), temperature=2.0) == pytest.approx([1 / 8, 2 / 8, 5 / 8])


def test_a_near_tie_is_a_margin_within_the_noise():
    assert near_tie(0.0, 680, "fp32") and not near_tie(1.0, 680, "fp32")
    assert near_tie(0.5, 680, "bf16") and not near_tie(float("inf"), 680, "bf16")

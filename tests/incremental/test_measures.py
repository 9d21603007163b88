"""Accuracy, forgetting and backward transfer against cases worked out by hand; offsets; splits."""

import numpy as np
import pytest

from avarc_cli.errors import UsageError
from avarc_cli.incremental.measures import Measures, measure
from avarc_cli.incremental.offsets import fit_offsets
from avarc_cli.incremental.split import parse_split

NAN = float("nan")


def test_the_definitions_on_a_matrix_worked_out_by_hand():
    matrix = np.array([[0.9, NAN, NAN], [0.6, 0.8, NAN], [0.7, 0.5, 1.0]])
    m = Measures(matrix, 0.0, {})
    assert m.average_accuracy == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    assert m.backward_transfer == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    assert m.forgetting == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert m.seen == pytest.approx([0.9, 0.7, 2.2 / 3])


def test_forgetting_counts_from_the_best_and_transfer_from_the_first():
    matrix = np.array([[0.5, NAN, NAN], [0.8, 0.6, NAN], [0.7, 0.6, 1.0]])
    m = Measures(matrix, 0.0, {})
    assert m.forgetting == pytest.approx((0.8 - 0.7) / 2) and m.backward_transfer == pytest.approx((0.7 - 0.5) / 2)


def test_only_known_classes_are_candidates():
    """Class 2 outbids all others, but counts only once it is known."""
    scores = np.array([[1.0, 0.0, 9.0], [0.0, 1.0, 9.0], [0.0, 1.0, 9.0]])
    m = measure([scores, scores], np.array([0, 1, 2]), [[0, 1], [2]], ["a", "b", "c"])
    assert m.matrix[0, 0] == 1.0 and np.isnan(m.matrix[0, 1]) and m.matrix[1].tolist() == [0.0, 1.0]
    assert m.overall == pytest.approx(1 / 3) and m.per_class == {"a": 0.0, "b": 0.0, "c": 1.0}
    assert m.as_dict()["matrix"] == [[1.0, None], [0.0, 1.0]] and m.forgetting == 1.0


def test_classes_may_come_in_any_order():
    scores = np.eye(4)[[2, 0, 3, 1]]
    m = measure([scores] * 2, np.array([2, 0, 3, 1]), [[3, 1], [0, 2]], list("abcd"))
    assert m.overall == 1.0 and np.nanmin(m.matrix) == 1.0


def test_an_offset_corrects_a_class_that_wins_everything():
    rng = np.random.default_rng(0)
    label = np.arange(3).repeat(50)
    scores = 10 * np.eye(3)[label] + rng.normal(0, 3, (150, 3))
    scores[:, 2] += 40
    assert (scores.argmax(1) == 2).all()
    offset = fit_offsets(scores, label, free=1)
    fair = scores + np.array([0, 0, offset[0]])
    assert offset[0] == pytest.approx(-40, abs=2) and (fair.argmax(1) == label).mean() > 0.9


def test_an_offset_of_fair_scores_is_small_however_many_images_a_class_has():
    rng = np.random.default_rng(1)
    label = np.arange(2).repeat([500, 50])
    scores = 6 * np.eye(2)[label] + rng.normal(0, 2, (550, 2))
    assert abs(fit_offsets(scores, label, free=1)[0]) < 1


def test_offsets_stay_finite_where_classes_are_perfectly_apart_or_equal():
    label = np.arange(2).repeat(5)
    assert abs(fit_offsets(100 * np.eye(2)[label], label, free=1)[0]) < 5
    assert np.isfinite(fit_offsets(np.zeros((10, 2)), label, free=1)).all()


def test_splits_are_written_as_ranges_and_names():
    digits = [str(i) for i in range(10)]
    split = parse_split("0-4", "5-6,7-9", digits)
    assert split.tasks == (tuple("01234"), tuple("56"), tuple("789")) and split.titles == ("0..4", "5..6", "7..9")
    assert parse_split("8,2", "0 + 4-5,1", digits).classes == tuple("820451")
    animals = ["Red Fox", "owl", "a-1", "bee"]
    assert parse_split("red_fox+a-1", "OWL,bee", animals).tasks == (("Red Fox", "a-1"), ("owl",), ("bee",))


@pytest.mark.parametrize(
    ("base", "tasks", "says"),
    [
        ("0-4", "5-12", "no class '10'"),
        ("0-4", "4-6", "class '4' appears twice"),
        ("0-4", "5-6,,7", "no class ''"),
        ("", "5", "no class ''"),
        ("4-0", "5", "no class"),
        ("owll", "5", "no class 'owll'"),
    ],
)
def test_a_split_that_makes_no_sense_is_one_message(base, tasks, says):
    with pytest.raises(UsageError, match=says):
        parse_split(base, tasks, [*map(str, range(10)), "owl"])

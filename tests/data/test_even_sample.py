"""Drawing images evenly over their classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avarc_cli.data.even_sample import draw_evenly
from avarc_cli.errors import UsageError


def test_a_seed_always_draws_the_same_images():
    labels = np.repeat(np.arange(4), 5)
    assert draw_evenly(labels, 6, 0).tolist() == [0, 9, 11, 13, 16, 17]  # recorded once: it must never change
    assert draw_evenly(labels, 6, 1).tolist() == [2, 3, 5, 10, 15, 16]


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=40), st.integers(1, 50), st.integers(0, 2**64 - 1))
def test_classes_differ_by_one_unless_images_run_out(labels, count, seed):
    labels = np.array(labels)
    rows = draw_evenly(labels, count, seed)
    assert rows.tolist() == sorted(set(rows.tolist()))
    if (labels < 0).all():
        assert len(rows) == min(count, len(labels))
        return
    assert len(rows) == min(count, (labels >= 0).sum()) and (labels[rows] >= 0).all()
    drawn = {c: (labels[rows] == c).sum() for c in set(labels[labels >= 0].tolist())}
    unexhausted = [number for c, number in drawn.items() if number < (labels == c).sum()]
    assert all(max(drawn.values()) - number <= 1 for number in unexhausted)


def test_every_image_of_a_class_is_as_likely():
    labels = np.repeat([0, 1], [10, 5])
    times = np.zeros(15)
    for seed in range(400):
        times[draw_evenly(labels, 4, seed)] += 1
    assert np.allclose(times[:10], 80, atol=35) and np.allclose(times[10:], 160, atol=50)


def test_a_number_below_one_is_an_error():
    with pytest.raises(UsageError, match="cannot draw 0 images"):
        draw_evenly(np.zeros(3), 0, 0)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avarc_cli.errors import AvarcError
from avarc_cli.work.chunks import DAMAGED, Part, Parts, Unreadable

PART = Part(
    rows=np.array([3, 5]),
    tokens=np.arange(20, dtype=np.uint16).reshape(2, 2, 5),
    latents=np.ones((2, 3, 2, 2), dtype=np.float16),
    unreadable=(Unreadable(4, "caf\udce9.png", "why"),),
)


def make_parts(folder, **changes):
    return Parts(**({"folder": folder, "total": 8, "unit": 3, "sample_shape": (2, 5), "latents": True} | changes))


def test_units_cover_every_image_once(tmp_path):
    parts = make_parts(tmp_path)
    assert parts.count == 3
    assert [index for number in range(3) for index in parts.images(number)] == list(range(8))


def test_a_part_comes_back_as_it_was_saved(tmp_path):
    parts = make_parts(tmp_path)
    parts.save(1, PART)
    back = parts.load(1)
    assert np.array_equal(back.rows, PART.rows)
    assert np.array_equal(back.tokens, PART.tokens)
    assert np.array_equal(back.latents, PART.latents)
    assert back.unreadable == PART.unreadable
    assert parts.finished() == {1}
    assert parts.damaged(range(3)) == [0, 2]
    assert parts.summary([1]) == (2, [("caf\udce9.png", "why")])


@pytest.mark.parametrize("changes", [{"sample_shape": (1, 5)}, {"unit": 4}, {"total": 5}])
def test_a_part_of_another_request_counts_as_damaged(tmp_path, changes):
    make_parts(tmp_path).save(1, PART)
    assert make_parts(tmp_path, **changes).damaged([1]) == [1]


def test_a_part_damaged_before_the_assembly_says_how_to_go_on(tmp_path):
    parts = make_parts(tmp_path, total=6)
    with pytest.raises(AvarcError, match="damaged while it was in use"):
        list(parts.stream([0]))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_noticed_or_harmless(tmp_path, data):
    parts = make_parts(tmp_path)
    parts.save(1, PART)
    path = tmp_path / "000001.npz"
    damaged = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place : place + 3] = data.draw(st.binary(max_size=3))
    path.write_bytes(damaged)
    try:
        back = parts.load(1)
    except DAMAGED:
        return
    assert np.array_equal(back.tokens, PART.tokens)
    assert back.unreadable == PART.unreadable

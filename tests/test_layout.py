"""Token layouts: their sizes, their JSON form, and what they refuse."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avarc_cli.layout import TokenLayout

SIZES = st.integers(1, 64)


@given(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=12))
def test_grids_survive_json(grids):
    layout = TokenLayout(tuple(grids), sum(rows * columns for rows, columns in grids))
    assert TokenLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    assert layout.grid_ends[-1] == layout.num_tokens
    assert len(layout.grid_ends) == len(grids)


@given(SIZES)
def test_sequences_survive_json(length):
    layout = TokenLayout.sequence(length)
    assert TokenLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    assert layout.grids == ()


def test_the_layouts_of_published_models():
    var = TokenLayout.multi_scale((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    assert (var.num_tokens, var.grid_ends[:3], str(var)) == (680, (1, 5, 14), "scales 1,2,3,4,5,6,8,10,13,16")
    assert var.sides[-1] == 16
    llamagen = TokenLayout.raster(24, 24)
    assert (llamagen.num_tokens, str(llamagen)) == (576, "24x24 grid")
    titok = TokenLayout.sequence(32)
    assert (titok.num_tokens, str(titok)) == (32, "32 tokens without a grid")


@pytest.mark.parametrize(
    "values", [{}, {"grids": []}, {"grids": [[0, 1]]}, {"grids": [[1]]}, {"tokens": 0}, {"tokens": "9"}, {"grids": 3}]
)
def test_an_invalid_layout_is_refused(values):
    with pytest.raises((KeyError, TypeError, ValueError)):
        TokenLayout.from_dict(values)


def test_grids_must_hold_the_tokens():
    with pytest.raises(ValueError, match="do not hold 5"):
        TokenLayout(((2, 2),), 5)


def test_sides_are_of_square_grids():
    with pytest.raises(ValueError, match="not square"):
        _ = TokenLayout.raster(2, 3).sides

from __future__ import annotations

import pytest

from avarc_cli.errors import describe_differences


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ({"a": 1, "b": "x"}, {"a": 1, "b": "x"}, ""),
        ({"b": "x", "a": 1}, {"a": 2, "b": "y"}, "a: 1 there, 2 here; b: x there, y here"),
        ({"a": None}, {}, ""),
        ({"a": 1}, {}, "a: 1 there, null here"),
        ({"a": [1, 2]}, {"a": (1, 2)}, ""),
        ({"a": [1]}, {"a": (1, 2)}, "a: [1] there, [1, 2] here"),
        ({"a": {"b": {"c": 1}, "d": 2}}, {"a": {"b": {"c": 3}, "d": 2}}, "a.b.c: 1 there, 3 here"),
        ({"a": {}}, {"a": {"b": 1}}, "a: {} there, null here; a.b: null there, 1 here"),
        ({"a": "x" * 64}, {"a": "y" * 200}, f"a: {'x' * 64} there, {'y' * 97}... here"),
    ],
)
def test_differences_are_described_with_both_values(there, here, message):
    assert describe_differences(there, here) == message


def test_the_two_sides_can_be_named():
    message = describe_differences({"a": 1}, {"a": 2}, sides=("in the cache", "for the model"))
    assert message == "a: 1 in the cache, 2 for the model"

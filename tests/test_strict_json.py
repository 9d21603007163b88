"""JSON that Python's parser accepts, and that no file of ours contains."""

import json

import pytest

from avarc_cli import strict_json


@pytest.mark.parametrize(
    "value", [{}, [], None, "x", 1.5, -(2**63), 2**64 - 1, {"a": [{"b": [1, [2, [3]]]}]}, [[0] * 5] * 4]
)
def test_a_value_comes_back(value):
    assert strict_json.parse(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested"),
        ("[" * 100_000 + "]" * 100_000, "nested"),
        ("[" * 100 + "]" * 100, "nested"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested"),
        ("9" * 5000, "digits"),
        (str(2**64), "digits"),
        (f'{{"a": -{2**64}}}', "digits"),
        ('{"a": ', "Expecting value"),
        (b"\xc3(", "decode"),
    ],
)
def test_anything_else_is_a_value_error(text, says):
    with pytest.raises(ValueError, match=says):
        strict_json.parse(text)


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"'])
def test_a_document_may_have_to_be_an_object(text):
    assert strict_json.parse_object('{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match="not a JSON object"):
        strict_json.parse_object(text)

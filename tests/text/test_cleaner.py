"""The caption cleaner against the original, and on text that is hard to parse."""

import json
from pathlib import Path

import pytest

from avarc_cli.text.cleaner import clean, clean_once

CASES = json.loads((Path(__file__).parents[1] / "golden" / "caption_cleaner.json").read_text())["captions"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:30])
def test_captions_are_cleaned_as_by_the_original(case):
    assert clean_once(case["text"]) == case["once"]
    assert clean(case["text"]) == case["twice"]


@pytest.mark.parametrize(
    "text", ["<![x", "<!", "a < b > c", "<script>x</script>y", "&#xffffffff;", "\ud800", "%ff", "." * 5_000]
)
def test_odd_text_is_no_error(text):
    assert isinstance(clean(text), str)

import pytest

from avarc_cli.errors import UsageError
from avarc_cli.scoring.plan import Plan, Stage, parse_plan

TEN = {"segments": 10, "candidates": 100, "samples": 3}


def test_the_papers_plan_is_spelled_out():
    expected = Plan((Stage(6, 10), Stage(10, 3), Stage(10, 1, 3)))
    assert parse_plan("paper", **TEN) == parse_plan("6:10,10:3,10:1:3", **TEN) == expected
    assert str(expected) == "6:10,10:3,10:1:3" and expected.samples == 3 and not expected.single_stage


def test_exhaustive_scores_everything_once():
    plan = parse_plan("exhaustive", **TEN)
    assert plan == Plan((Stage(10, 1),)) and plan.single_stage
    assert plan.tokens(100, (1, 5, 14, 30, 55, 91, 155, 255, 424, 680)) == 68_000


def test_the_papers_plan_costs_what_the_arithmetic_says():
    ends = (1, 5, 14, 30, 55, 91, 155, 255, 424, 680)
    assert parse_plan("paper", **TEN).tokens(100, ends) == 100 * 91 + 10 * (680 - 91) + 3 * 2 * 680


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("6:10,10:3", "ends with 3"),
        ("6:200,10:1", "it keeps 200"),
        ("6:10,10:20,10:1", "only 10 candidates are left"),
        ("11:1", "no segment 11"),
        ("0:1", "no segment 0"),
        ("10:0", "keeps nobody"),
        ("10:1:4", "hold 3 an image"),
        ("10:1:0", "averages nothing"),
        ("", "cannot read"),
        ("6", "cannot read"),
        ("6:10,,10:1", "cannot read"),
        ("a:b", "cannot read"),
        ("-6:1", "cannot read"),
        ("1:2:3:4", "cannot read"),
        ("６:1", "cannot read"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused_with_one_message(text, says):
    with pytest.raises(UsageError, match=says):
        parse_plan(text, **TEN)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_margins_take_the_place_of_numbers_to_keep():
    plan = parse_plan("3:<8.25, 6:10, 10:<0.5:3, 10:1:3", **TEN)
    assert plan.stages == (Stage(3, 100, 1, 8.25), Stage(6, 10), Stage(10, 10, 3, 0.5), Stage(10, 1, 3))
    assert parse_plan(str(plan), **TEN) == plan
    assert parse_plan("exhaustive:3", **TEN) == Plan((Stage(10, 1, 3),))


def test_what_a_margin_leaves_is_counted_as_expected_or_at_its_worst():
    ends = (1, 5, 14, 30, 55, 91, 155, 255, 424, 680)
    assert parse_plan("6:<5,10:1", **TEN).tokens(100, ends) == 68_000
    assert Plan((Stage(6, 100, 1, 5.0, expected=2.5), Stage(10, 1))).tokens(100, ends) == round(9100 + 2.5 * 589)
    assert Plan((Stage(6, 1), Stage(10, 1))).tokens(100, ends) == 9100, "one that is left needs no more"


def test_where_the_precision_changes_everything_is_scored_from_the_first_token():
    ends = (1, 5, 14, 30, 55, 91, 155, 255, 424, 680)
    plan = parse_plan("6:10/bf16,10:3/bf16,10:1:3", **TEN)
    assert [stage.precision for stage in plan.stages] == ["bf16", "bf16", None] and plan.precisions == ("bf16",)
    assert plan.tokens(100, ends) == 100 * 91 + 10 * (680 - 91) + 3 * 3 * 680
    steps = plan.steps()
    assert [step.changes_precision for step in steps] == [False, False, True]
    assert [(step.last_segments, step.last_samples) for step in steps] == [(10, 1), (10, 1), (10, 3)]
    assert parse_plan("exhaustive:3/bf16", **TEN) == Plan((Stage(10, 1, 3, precision="bf16"),))
    assert str(parse_plan("exhaustive/int8", **TEN, orders=4)) == "10:1@4/int8"


PARTS = st.tuples(
    st.integers(1, 10),
    st.integers(1, 100) | st.floats(0, 1e6),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from(["", "fp32", "bf16", "int8"]),
)


@given(st.lists(PARTS, min_size=1, max_size=4))
def test_a_plan_is_written_as_it_is_read(parts):
    words, have = [], 100
    for segments, rule, samples, orders, precision in [*parts, (10, 1, 1, 1, "")]:
        keep = min(rule, have) if isinstance(rule, int) else have
        have = keep
        kept = str(keep) if isinstance(rule, int) else f"<{rule!r}"
        words.append(f"{segments}:{kept}:{samples} @{orders}" + f" / {precision}" * bool(precision))
    plan = parse_plan(", ".join(words), **TEN, orders=4)
    assert parse_plan(str(plan), **TEN, orders=4) == plan
    assert [stage.precision for stage in plan.stages] == [part[-1] or None for part in parts] + [None]


@given(st.integers(1, 8), st.floats(0, 3), st.integers(0, 1000), st.lists(st.booleans(), min_size=8, max_size=8))
def test_survivors_are_the_best_within_the_margin_and_what_is_not_scored_yet(keep, margin, seed, scored):
    scores = np.random.default_rng(seed).normal(size=8).round(1)  # rounded: ties
    alive = np.random.default_rng(seed + 1).random(8) < 0.8
    scores[~np.array(scored)] = np.nan
    (left,) = Stage(1, keep, 1, margin).survivors(alive[None], scores[None])
    ready = [c for c in range(8) if alive[c] and scored[c]]
    best = sorted(ready, key=lambda c: (-scores[c], c))[:keep]
    expected = {c for c in best if scores[c] >= max(scores[ready]) - margin} | {
        c for c in range(8) if alive[c] and not scored[c]
    }
    assert set(np.nonzero(left)[0]) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("6:<5", "ends with 100"),
        ("6:<-5,10:1", "cannot read"),
        ("6:<nan,10:1", "cannot read"),
        ("6:<inf,10:1", "cannot read"),
        ("6:<,10:1", "cannot read"),
        ("exhaustive:4", "has 3 per image"),
        ("exhaustively", "cannot read"),
        ("11:<5,10:1", "no segment 11"),
        ("6:10,10:3", "ends with 3"),
        ("6:200,10:1", "it keeps 200"),
        ("6:10,10:20,10:1", "only 10 candidates are left"),
        ("11:1", "no segment 11"),
        ("0:1", "no segment 0"),
        ("10:0", "keeps no candidate"),
        ("10:1:4", "has 3 per image"),
        ("10:1:0", "averages nothing"),
        ("", "cannot read"),
        ("6", "cannot read"),
        ("6:10,,10:1", "cannot read"),
        ("6:10/,10:1", "cannot read"),
        ("6:10/bf16/int8,10:1", "cannot read"),
        ("6:10/bf17,10:1", "no precision 'bf17'"),
        ("6/bf16:10,10:1", "cannot read"),
        ("a:b", "cannot read"),
        ("-6:1", "cannot read"),
        ("1:2:3:4", "cannot read"),
        ("６:1", "cannot read"),
        ("5:" + "1" * 5000, "cannot read"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused_with_one_message(text, says):
    with pytest.raises(UsageError, match=says):
        parse_plan(text, **TEN)

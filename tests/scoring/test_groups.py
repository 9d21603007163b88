"""Groups of images whose pairs share what a class costs: scored class by class, to the same decisions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring.test_engine import Counting, plans, request, tokens

from avarc_cli.scoring.engine import score_group


class Sharing(Counting):
    """A model that has work of each class to share."""

    group_cache_bytes = 100

    def __init__(self):
        super().__init__()
        self.of_classes = []

    def extend(self, state, stop, *, keep_cache_segments):
        self.of_classes.append(sorted(set(state.classes.tolist())))
        return super().extend(state, stop, keep_cache_segments=keep_cache_segments)


@pytest.mark.parametrize("plan", ["exhaustive", "2:4,4:1", "2:4,4:2,4:1:3"])
def test_images_of_a_group_share_the_work_of_each_class(plan):
    model, other, asked = Sharing(), Counting(), request(plan, per_batch=30)
    ours, theirs = score_group(model, tokens(), asked), score_group(other, tokens(), asked)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine.order.tolist() == wanted.order.tolist()
        for stage, other_stage in zip(mine.stages, wanted.stages, strict=True):
            assert stage.survivors.tolist() == other_stage.survivors.tolist()
            assert stage.scores.tolist() == other_stage.scores.tolist()
    assert sorted(model.cells()) == sorted(other.cells())
    first_stage = model.of_classes[: -(-3 * 7 * (10 if plan == "exhaustive" else 3) // 30)]
    assert [c for classes in first_stage for c in classes] == sorted(c for classes in first_stage for c in classes)


@pytest.mark.parametrize("kept", [None, 6])
def test_a_pass_has_whole_classes(kept):
    """Else the work of a class would be done in two passes: of 5 pairs that one takes, or of 2 that it may store."""
    model = Sharing()
    asked = replace(request("2:4,4:1", per_batch=16, samples=1), cached_tokens_per_batch=kept)
    score_group(model, tokens(images=4, samples=1), asked)
    assert model.batches[:7] == [4] * 7 and model.of_classes[:7] == [[c] for c in range(7)]


def test_a_class_with_more_pairs_than_a_pass_takes_is_divided_evenly():
    model = Sharing()
    score_group(model, tokens(images=4, samples=1), request("2:4,4:1", per_batch=9, samples=1))
    assert model.batches[:14] == [2] * 14 and model.of_classes[:14] == [[c // 2] for c in range(14)]


def test_small_classes_fill_a_pass_beside_a_large_one():
    """Four images keep class 0, and each of them another one: two samples of all eight pairs, and four in a pass."""
    model, prior = Sharing(), np.array([100.0, 0, 0, 0, 0, 0, 0])
    score_group(model, tokens(images=4, samples=2), request("2:2,4:1:2", per_batch=40, samples=2, prior=prior))
    assert model.batches[-2:] == [4, 4] and model.of_classes[-2] == [0]


@settings(max_examples=40)
@given(plans, st.integers(1, 200), st.none() | st.integers(1, 100), st.sampled_from(["log-likelihood", "pmi"]))
def test_whole_classes_change_no_score_and_keep_the_limits(plan, per_batch, kept, score):
    model, other = Sharing(), Counting()
    asked = replace(request(plan, per_batch=per_batch, score=score), cached_tokens_per_batch=kept)
    for mine, wanted in zip(*(score_group(each, tokens(), asked) for each in (model, other)), strict=True):
        assert mine.order.tolist() == wanted.order.tolist() and mine.posterior == pytest.approx(wanted.posterior)
    assert sorted(model.cells()) == sorted(other.cells()) and len(set(model.cells())) == len(model.cells())
    assert model.largest <= max(per_batch, 10)
    assert kept is None or model.stored <= max(kept, 3 * 10), "more than the limit, and than a class of three images"


def test_groups_of_images_that_share_work_hold_as_many_as_their_budget():
    model = Sharing()
    assert request("exhaustive", per_batch=30).images_per_group(model) == 8  # nothing is cached
    staged = request("2:4,4:1", per_batch=30)
    assert staged.images_per_group(Counting()) == 1
    assert staged.cached_tokens(model) == 12 and staged.images_per_group(model) == 100 // 12
    assert replace(staged, max_cached_tokens=60).images_per_group(model) == 60 // 2 // 12
    assert replace(staged, max_cached_tokens=1).images_per_group(model) == 1


def test_survivors_of_a_group_are_never_all_in_memory_twice():
    """A batch is one class under all images, so whenever a class beats those before it, most batches lose pairs."""
    images, candidates, keep, end = 12, 7, 4, 6
    model, batch = Sharing(), images * end
    score_group(model, tokens(images), request(f"3:{keep},4:1", range(candidates), per_batch=batch))
    survivors = images * keep * end
    assert survivors <= model.peak <= survivors + 2 * batch  # the batch at hand, and one that is being copied

"""Orders as an axis of the engine: definitions, pruning, rules that combine orders, and what is refused."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring.test_engine import Counting, tokens

from avarc_cli.errors import UsageError
from avarc_cli.scoring.combining import check_prunes, combine
from avarc_cli.scoring.conformal import ScoreTable, doubling, simulate, tried_estimates
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.orders import check_orders, parse_orders, random_order
from avarc_cli.scoring.plan import Stage, parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function

LENGTH, ORDERS = 10, 4


class AnyOrder(Counting):
    """Makes up numbers that depend on the tokens of earlier segments along the order, and on where they lie."""

    any_order = True

    def along(self, tokens_BL, order_BL):
        return tokens_BL.gather(1, order_BL) * LENGTH + order_BL

    def begin(self, tokens_BL, sequence_P, class_id_P, order_BL=None):
        return super().begin(self.along(tokens_BL, order_BL), sequence_P, class_id_P)

    def fork(self, state, keep_Q, tokens_BL, sequence_Q, stop, order_BL=None):
        return super().fork(state, keep_Q, self.along(tokens_BL, order_BL), sequence_Q, stop)

    has_block_parallel = True

    def block_parallel(self, tokens_BL, sequence_P, class_id_P, order_BL=None, *, revealed):
        assert order_BL is not None
        rows = zip(self.along(tokens_BL, order_BL)[sequence_P], class_id_P, strict=True)
        return torch.from_numpy(np.stack([self.estimated(row, c, revealed) for row, c in rows]).astype(np.float32))

    def estimated(self, row_L, class_id, revealed):
        """Of the tokens that are not revealed: depends on them and on those that are."""
        log_p = self.log_prob(row_L, class_id)
        for t in range(revealed, LENGTH):
            rng = np.random.default_rng([self.seed, int(class_id), int(row_L[t]), *map(int, row_L[:revealed])])
            log_p[t] = -rng.exponential()
        return log_p

    def scored(self, tokens_L, order_L, class_id):
        """log p of the tokens, in the order of scoring."""
        return self.log_prob(tokens_L[order_L] * LENGTH + order_L, class_id).astype(np.float64)


def orders_of(images=3, count=ORDERS, seed=0):
    return parse_orders(str(count), seed, LENGTH).of(np.arange(images), LENGTH, count)


def request(plan, *, per_batch=1000, score="log-likelihood", prior=None, samples=3, **more):
    return ScoringRequest(
        candidates=np.arange(7),
        plan=parse_plan(plan, segments=4, candidates=7, samples=samples, orders=ORDERS, can_estimate=True),
        score=score_function(score),
        log_prior=np.zeros(7) if prior is None else prior,
        tokens_per_batch=per_batch,
        **more,
    )


def by_hand(model, tokens_SL, order_OL, plan, prior):
    """The winner and its score: means over orders and samples, stage by stage."""
    left, scores = list(range(7)), {}
    for number, stage in enumerate(plan.stages):
        if number and len(left) == 1:
            break
        end = model.segment_ends[stage.segments - 1]
        for c in left:
            sums = [
                model.scored(tokens_SL[s], order_OL[o], c)[:end].sum()
                for o in range(stage.orders)
                for s in range(stage.samples)
            ]
            scores[c] = np.mean(sums) + prior[c]
        best = max(scores[c] for c in left)
        left = sorted((c for c in left if scores[c] >= best - stage.margin), key=lambda c: (-scores[c], c))
        left = left[: stage.keep]
    return left[0], scores


plans = st.sampled_from(
    [
        *("exhaustive", "exhaustive:3", "exhaustive@2", "2:5,4:1@4", "1:6,2:3@2,4:1:3@4", "2:3,4:3:2,4:1:3@2"),
        *("3:4@2,2:2,4:1@3", "1:1@3", "4:7@2,4:2@1,4:1:2@4", "2:7:3@2,3:3:2@3,4:1@4", "1:<1@2,2:<2@2,4:1@4"),
        *("1:5:2@1,2:3:1@3,3:2:3@2,4:1:3@4", "2:<1.5:2@3,4:1:2@3"),
    ]
)


@settings(max_examples=60, deadline=None)
@given(plans, st.integers(1, 300), st.integers(0, 5), st.sampled_from(["log-likelihood", "pmi"]))
def test_any_batching_gives_the_definitions_winner_and_scores(plan, per_batch, seed, score):
    model, data, order_GOL = AnyOrder(seed), tokens(seed=seed), orders_of(seed=seed)
    prior = np.random.default_rng(seed).normal(size=7)
    asked = request(plan, per_batch=per_batch, prior=prior, score=score)
    order_GOL = order_GOL[:, : asked.plan.orders]
    results = score_group(model, data, asked, order_GOL)
    assert len(model.seen) == len(set(model.seen)), "no cell is scored twice"
    for image, order_OL, result in zip(data, order_GOL, results, strict=True):
        winner, scores = by_hand(model, image, order_OL, asked.plan, prior)
        assert result.order[0] == winner
        offset = result.unconditional if score == "pmi" else 0.0
        for c, value in scores.items():
            if score == "log-likelihood" or c == winner:
                assert result.scores[c] + prior[c] == pytest.approx(value - offset, abs=1e-9)
    if "<" not in plan:
        assert [r.tokens_scored for r in results] == [
            asked.plan.tokens(7, model.segment_ends) + asked.plan.tokens(1, model.segment_ends) * (score == "pmi")
        ] * 3


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 300), st.integers(0, 5), st.sampled_from(["2~:3,4:1@4", "1:5,2~:3:2@3,3:2@2,4:1@4", "3~:<4,4:1@2"])
)
def test_estimates_drop_candidates_and_exact_scores_decide(per_batch, seed, plan):
    model, data, order_GOL = AnyOrder(seed), tokens(seed=seed), orders_of(seed=seed)
    asked = request(plan, per_batch=per_batch)
    results = score_group(model, data, asked, order_GOL)
    assert len(model.seen) == len(set(model.seen))
    for image, order_OL, result in zip(data, order_GOL, results, strict=True):
        left = list(range(7))
        for stage in asked.plan.stages:
            if len(left) == 1:
                break
            end, scores = model.segment_ends[stage.segments - 1], {}
            for c in left:
                draws = [(order_OL[o], image[s]) for o in range(stage.orders) for s in range(stage.samples)]
                if stage.estimated:
                    each = [model.estimated(x[o] * LENGTH + o, c, end)[end:].sum() * 10 / (10 - end) for o, x in draws]
                else:
                    each = [model.scored(x, o, c)[:end].sum() for o, x in draws]
                scores[c] = np.mean(each)
            best = max(scores.values())
            left = sorted((c for c in left if scores[c] >= best - stage.margin), key=lambda c: (-scores[c], c))
            left = left[: stage.keep]
        assert result.order[0] == left[0]
    if "<" not in plan:
        assert [r.tokens_scored for r in results] == [asked.plan.tokens(7, model.segment_ends)] * 3


def test_an_image_that_one_estimate_decides_keeps_it_while_others_are_estimated_again():
    model, data, order_GOL = AnyOrder(3), tokens(images=8, seed=3), orders_of(images=8, seed=3)
    asked = request("1~:<1,2~:<1,4:1", score="pmi")
    results = score_group(model, data, asked, order_GOL[:, :1])
    decided = [g for g, result in enumerate(results) if len(result.stages) == 1]
    assert 0 < len(decided) < 8
    for g in decided:
        row_L = torch.from_numpy(data[g, 0, order_GOL[g, 0]] * LENGTH + order_GOL[g, 0])
        expected = model.estimated(row_L, model.unconditional, 1)[1:].sum() * 10 / 9
        assert results[g].unconditional == pytest.approx(expected)


def test_estimates_that_cannot_be_are_refused():
    def parse(text, can_estimate=True):
        return parse_plan(text, segments=4, candidates=7, samples=1, orders=4, can_estimate=can_estimate)

    assert str(parse("2~:3@2,4:1@4")) == "2~:3@2,4:1@4"
    for text, says in (("4~:3,4:1", "nothing is left to estimate"), ("2~:1", "ends with an estimate")):
        with pytest.raises(UsageError, match=says):
            parse(text)
    with pytest.raises(UsageError, match="the model has no such estimate"):
        parse("2~:3,4:1", can_estimate=False)


def test_caches_beyond_the_limit_change_no_number():
    data, order_GOL = tokens(), orders_of()
    asked = request("1:6,2:3@2,4:1:3@4", per_batch=40)
    free = score_group(AnyOrder(), data, asked, order_GOL)
    tight = score_group(AnyOrder(), data, replace(asked, max_cached_tokens=5), order_GOL)
    assert [r.scores.tolist() for r in free] == [r.scores.tolist() for r in tight]


def test_token_log_probabilities_lie_at_the_tokens_own_positions():
    model, data, order_GOL = AnyOrder(), tokens(samples=1), orders_of()
    asked = request("exhaustive", per_batch=37, samples=1, keep_tokens=True)
    for image, order_OL, result in zip(data, order_GOL, score_group(model, data, asked, order_GOL), strict=True):
        for c in range(7):
            for o in range(ORDERS):
                expected = model.scored(image[0], order_OL[o], c)
                assert np.allclose(result.token_log_prob[c, o, order_OL[o]], expected)
        assert result.token_log_prob.mean(1).sum(1) == pytest.approx(result.scores, abs=1e-4)


@pytest.mark.parametrize("rule", ["mean", "posterior", "log-mean-exp"])
@pytest.mark.parametrize("score", ["log-likelihood", "pmi"])
def test_rules_that_combine_orders_are_their_definitions(rule, score):
    model, data, order_GOL = AnyOrder(3), tokens(samples=1), orders_of()
    prior = np.random.default_rng(1).normal(size=7)
    asked = request("exhaustive", per_batch=50, samples=1, prior=prior, score=score, combine=rule)
    for image, order_OL, result in zip(data, order_GOL, score_group(model, data, asked, order_GOL), strict=True):
        log_p = np.array([[model.scored(image[0], order, c).sum() for order in order_OL] for c in range(7)])
        if score == "pmi":
            log_p -= np.array([model.scored(image[0], order, model.unconditional).sum() for order in order_OL])
        joint = log_p + prior[:, None]
        expected = {
            "mean": joint.mean(1),
            "log-mean-exp": np.log(np.exp(joint).mean(1)),
            "posterior": np.log((np.exp(joint) / np.exp(joint).sum(0)).mean(1)),
        }[rule]
        assert result.order.tolist() == np.argsort(-expected, kind="stable").tolist()
        assert result.scores + prior == pytest.approx(expected, abs=1e-6)
        softmax = np.exp(expected - expected.max())
        assert result.posterior == pytest.approx(softmax / softmax.sum(), abs=1e-6)


def test_the_rules_may_disagree():
    log_p_NO = np.log(np.array([[0.5, 0.5, 0.01], [0.3, 0.3, 0.3], [0.05, 0.05, 0.69]]))
    winners = {rule: int(combine(rule, log_p_NO).argmax()) for rule in ("mean", "posterior", "log-mean-exp")}
    assert winners["mean"] == 1 and winners["log-mean-exp"] == 0
    missing = log_p_NO.copy()
    missing[0, 1] = math.nan
    assert np.isnan(combine("posterior", missing)).all(), "all candidates are compared in every order"
    assert np.isnan(combine("mean", missing)).tolist() == [True, False, False]


def test_only_the_mean_may_prune():
    plan = parse_plan("2:3@2,4:1@4", segments=4, candidates=7, samples=1, orders=4)
    check_prunes("mean", plan)
    for rule in ("posterior", "log-mean-exp"):
        with pytest.raises(UsageError, match="drops candidates on a part of their tokens"):
            check_prunes(rule, plan)
        check_prunes(rule, parse_plan("exhaustive@3", segments=4, candidates=7, samples=1, orders=4))


def test_plans_name_orders():
    plan = parse_plan("4:100@1, 16:10 @ 2,16:<2.5:3@20,16:1:3@20", segments=16, candidates=1000, samples=3, orders=20)
    assert str(plan) == "4:100,16:10@2,16:<2.5:3@20,16:1:3@20" and plan.orders == 20
    assert plan.stages[2] == Stage(16, 10, 3, 2.5, orders=20)
    ends = tuple(range(16, 257, 16))
    assert plan.new_tokens(ends) == [64, 256 - 64 + 256, 60 * 256 - 2 * 256, 0]
    assert str(parse_plan("exhaustive", segments=4, candidates=7, samples=1, orders=20)) == "4:1@20"
    assert str(parse_plan("exhaustive:3@2", segments=4, candidates=7, samples=3, orders=20)) == "4:1:3@2"
    for text, says in (("4:1@3", "needs 3 orders"), ("4:1@0", "averages nothing"), ("4:1@", "cannot read plan")):
        with pytest.raises(UsageError, match=says):
            parse_plan(text, segments=4, candidates=7, samples=1, orders=2)


def test_a_tuned_plan_does_what_its_simulation_says():
    model, data, order_GOL = AnyOrder(), tokens(images=6, samples=1), orders_of(images=6)
    asked = request("exhaustive", samples=1, keep_segments=True, keep_estimates=tried_estimates(model))
    full = score_group(model, data, asked, order_GOL)
    estimates = {k: np.stack([r.estimates[:, e] for r in full]) for e, k in enumerate((1, 2))}
    table = ScoreTable.of(np.stack([r.segment_log_prob for r in full]), np.zeros(7), model.segment_ends, estimates)
    assert table.exhaustive_tokens == 7 * ORDERS * LENGTH and doubling(20) == [1, 2, 4, 8, 16, 20]
    assert all(path[-1] == table.end for path in table.paths())
    for text in ("1:<2,3:<1,4:<3,4:1@4", "2:<4@2,4:1@4", "1:4@4,4:1@4", "2~:<9,4:<3,4:1@4", "1~:3,4:1@4"):
        asked = request(text, samples=1)
        simulated = simulate(asked.plan, table)
        results = score_group(AnyOrder(), data, asked, order_GOL)
        assert simulated.winner_n.tolist() == [int(r.order[0]) for r in results]
        assert simulated.tokens_n.tolist() == [r.tokens_scored for r in results]


def test_an_order_depends_on_seed_image_and_number_alone():
    first = parse_orders("5", 7, 64)
    rows = np.array([3, 9, 3])
    orders = first.of(rows, 64, 5)
    assert orders.shape == (3, 5, 64) and np.array_equal(orders[0], orders[2])
    assert np.array_equal(orders[1][:2], parse_orders("2", 7, 64).of(np.array([9]), 64, 2)[0])
    assert np.array_equal(np.sort(orders[0][4]), np.arange(64))
    assert not np.array_equal(orders[0][0], random_order(8, 3, 0, 64))
    assert parse_orders("raster", 0, 64).of(rows, 64, 1) is None


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(2, 20), st.randoms())
def test_a_file_of_permutations_is_read_and_one_that_is_wrong_is_named(count, length, random):
    good = np.stack([np.array(random.sample(range(length), length)) for _ in range(count)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "o.npy"
        np.save(path, good)
        orders = parse_orders(str(path), 0, length)
        assert orders.count == count and np.array_equal(orders.of(np.arange(2), length, count)[1], good)
        row, bad = random.randrange(count), good.copy()
        bad[row, 0] = bad[row, 1]
        for wrong, says in (
            (bad, f"row {row} names position {bad[row, 1]} more than once"),
            (good + 1, "names position"),
            (good[:0], "expected are one or more rows"),
            (good[0], "expected are one or more rows"),
            (good.astype(np.float32), "not whole numbers"),
            (good[:, 1:], f"its rows have {length - 1} positions, the model has {length}"),
        ):
            np.save(path, wrong)
            with pytest.raises(UsageError) as error:
                parse_orders(str(path), 0, length)
            assert says in str(error.value)
        path.write_bytes(b"nonsense")
        with pytest.raises(UsageError, match="cannot read"):
            parse_orders(str(path), 0, length)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "4097", "9" * 5000, "rasta", "", "none.npy"])
def test_what_names_no_orders_is_refused(text):
    with pytest.raises(UsageError):
        check_orders(text)

"""The engine against brute force: whatever the plan and the batching, the same cells and the same decisions."""

import re
import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.scoring import engine
from avarc_cli.scoring.conformal import ScoreTable, simulate
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import posterior, score_function


@dataclass(eq=False)
class State:
    tokens: torch.Tensor
    classes: torch.Tensor
    scored: int  # segments
    cached: int  # segments


class Counting(LikelihoodModel):
    """A likelihood model that makes its numbers up and records every cell that it scores."""

    segment_ends = (1, 3, 6, 10)
    num_classes = 7
    unconditional = 99
    joins = True

    def __init__(self, seed=0):
        self.seed, self.seen, self.largest, self.extended = seed, [], 0, 0
        self.batches, self.stored = [], 0  # pairs of each; most tokens that one from scratch stored
        self.states, self.peak = weakref.WeakSet(), 0  # tokens in the caches of all states

    def log_prob(self, tokens_L, class_id):
        """A segment's depends on its tokens and those before, as in a real model."""
        parts = []
        for start, end in zip([0, *self.segment_ends], self.segment_ends, strict=False):
            rng = np.random.default_rng([self.seed, int(class_id), *map(int, tokens_L[:end])])
            parts.append(-rng.exponential(size=end - start))
        return np.concatenate(parts).astype(np.float32)

    def begin(self, tokens_BL, sequence_P, class_id_P, order_BL=None):
        return self.state(tokens=tokens_BL[sequence_P], classes=class_id_P, scored=0, cached=0)

    def sample(self, *args, **options):
        raise NotImplementedError("nothing is sampled here")

    def state(self, **fields):
        state = State(**fields)
        self.states.add(state)
        ends = (0, *self.segment_ends)
        self.peak = max(self.peak, sum(len(s.classes) * ends[s.cached] for s in self.states))
        return state

    def extend(self, state, stop, *, keep_cache_segments):
        assert state.cached == state.scored, "the cache was freed"
        start, end = (self.segment_ends[state.scored - 1] if state.scored else 0), self.segment_ends[stop - 1]
        rows = [self.log_prob(t, c)[start:end] for t, c in zip(state.tokens, state.classes, strict=True)]
        for t, c in zip(state.tokens, state.classes, strict=True):
            self.seen += [(tuple(t.tolist()), int(c), k) for k in range(state.scored, stop)]
        self.largest = max(self.largest, len(rows) * (end - start))
        self.extended += state.scored > 0
        self.batches.append(len(rows))
        if not state.scored:
            self.stored = max(self.stored, len(rows) * (0, *self.segment_ends)[keep_cache_segments])
        state.scored, state.cached = stop, keep_cache_segments
        self.state(tokens=(), classes=(), scored=0, cached=0)  # for the count
        return torch.from_numpy(np.stack(rows))

    def cells(self):
        """What was scored: a segment's tokens and those before, the class, the segment."""
        return [(t[: self.segment_ends[k]], c, k) for t, c, k in self.seen]

    def select(self, state, keep_Q):
        rows = {"tokens": state.tokens[keep_Q], "classes": state.classes[keep_Q]}
        return self.state(**rows, scored=state.scored, cached=state.cached)

    def join(self, states):
        first = states[0]
        assert {(s.scored, s.cached) for s in states} == {(first.scored, first.cached)}, "they are not alike"
        tokens, classes = (torch.cat([getattr(s, name) for s in states]) for name in ("tokens", "classes"))
        return self.state(tokens=tokens, classes=classes, scored=first.scored, cached=first.cached)

    def fork(self, state, keep_Q, tokens_BL, sequence_Q, stop, order_BL=None):
        assert stop <= state.cached, "the shared segments are not cached"
        end, tokens_QL = self.segment_ends[stop - 1], tokens_BL[sequence_Q]
        assert torch.equal(state.tokens[keep_Q, :end], tokens_QL[:, :end]), "they do not begin alike"
        return self.state(tokens=tokens_QL, classes=state.classes[keep_Q], scored=stop, cached=stop)

    def bytes_per_token(self, *, cached):
        return 1


def request(plan, candidates=range(7), *, per_batch=1000, score="log-likelihood", prior=None, samples=3, keep=False):
    ids = np.array(list(candidates), dtype=np.int64)
    return ScoringRequest(
        candidates=ids,
        plan=parse_plan(plan, segments=4, candidates=len(ids), samples=samples),
        score=score_function(score),
        log_prior=np.zeros(len(ids)) if prior is None else prior,
        tokens_per_batch=per_batch,
        keep_tokens=keep,
    )


def tokens(images=3, samples=3, seed=0):
    return np.random.default_rng(seed).integers(0, 1000, (images, samples, 10))


def by_hand(model, tokens_SL, plan, candidates, prior):
    """The definition: score the remaining candidates on the first segments, averaged over samples; keep the best."""
    left, scores = list(range(len(candidates))), {}
    for number, stage in enumerate(plan.stages):
        if number and len(left) == 1:
            break
        end = model.segment_ends[stage.segments - 1]
        for c in left:
            sums = [
                model.log_prob(tokens_SL[s], candidates[c])[:end].astype(np.float64).sum() for s in range(stage.samples)
            ]
            scores[c] = np.mean(sums) + prior[c]
        best = max(scores[c] for c in left)
        left = [
            c for c in sorted(left, key=lambda c: (-scores[c], c))[: stage.keep] if scores[c] >= best - stage.margin
        ]
    return left[0], scores


plans = st.sampled_from(
    [
        *("exhaustive", "2:5,4:1", "1:6,2:3,4:1:3", "2:3,4:3:2,4:1:3", "3:4,2:2,4:1:2", "1:1", "4:7,4:1:3"),
        *("2:7:3,3:1:2", "2:5:3,3:3:2,4:1:3", "1:7:3,4:5,4:1:3"),  # fewer samples than before
    ]
)
adaptive = st.sampled_from(
    ["1:<1,2:<2,3:<2,4:1", "1:<0.5,4:1", "2:<3,4:<1,4:1:3", "1:<1:3,2:<1:3,3:<1:3,4:1:3", "1:5,2:<1.5,4:1", "1:<0,4:1"]
)


@settings(max_examples=60)
@given(plans | adaptive, st.integers(1, 200), st.integers(0, 5), st.sampled_from(["log-likelihood", "pmi"]))
def test_any_batching_gives_the_definitions_winner_and_scores(plan, per_batch, seed, score):
    model, data = Counting(seed), tokens(seed=seed)
    prior = np.random.default_rng(seed).normal(size=7)
    asked = request(plan, per_batch=per_batch, prior=prior, score=score)
    for image, result in zip(data, score_group(model, data, asked), strict=True):
        winner, scores = by_hand(model, image, asked.plan, asked.candidates, prior)
        assert result.order[0] == winner
        offset = result.unconditional if score == "pmi" else 0.0
        for c, value in scores.items():
            if score == "log-likelihood" or c == winner:
                assert result.scores[c] + prior[c] == pytest.approx(value - offset, abs=1e-9)
        assert result.posterior.sum() == pytest.approx(1)
        assert sorted(result.order) == list(range(7))


@settings(max_examples=40)
@given(plans, st.integers(1, 200), st.none() | st.integers(1, 100))
def test_no_cell_is_scored_twice_and_batches_stay_within_the_limit(plan, per_batch, kept):
    model, data = Counting(), tokens()
    asked = replace(request(plan, per_batch=per_batch), cached_tokens_per_batch=kept)
    results = score_group(model, data, asked)
    assert len(model.seen) == len(set(model.seen))
    assert model.largest <= max(per_batch, 10)  # one pair is the least there is
    assert kept is None or model.stored <= max(kept, 10)
    assert [r.tokens_scored for r in results] == [asked.plan.tokens(7, model.segment_ends)] * 3


def samples_sharing(shared_GS, seed=0):
    """Tokens whose sample s has the first shared_GS[g][s - 1] segments of image g, and its own after that."""
    data = tokens(images=len(shared_GS), samples=1 + len(shared_GS[0]), seed=seed)
    ends = [0, *Counting.segment_ends]
    for g, shared_S in enumerate(shared_GS):
        for s, segments in enumerate(shared_S, start=1):
            data[g, s, : ends[segments]] = data[g, 0, : ends[segments]]
    return data


growing = st.sampled_from(
    [
        *("exhaustive:3", "2:5,4:1:3", "1:6,2:3,4:1:3", "2:3,4:3:2,4:1:3", "4:3,2:1:3", "3:4,3:1:3"),
        "4:5,2:4:2,4:1:2",
    ]
)
# Here samples begin before all segments that they share with the image are scored: those are scored for each sample.
begun_early = st.sampled_from(
    ["1:6:2,3:1:2", "1:7:2,4:5,4:1:3", "2:5:3,3:3:2,4:1:3", "2:7:3,3:1:2", "2:2:3,3:2:2,3:1:2"]
)
common = st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=3)


@settings(max_examples=80)
@given(st.data(), st.integers(1, 200), common, st.sampled_from(["log-likelihood", "pmi"]), st.booleans())
def test_samples_start_after_the_segments_that_they_share_with_their_image(data, per_batch, shared_GS, score, early):
    plan = data.draw(begun_early if early else growing)
    model, data = Counting(), samples_sharing(shared_GS)
    asked = request(plan, per_batch=per_batch, score=score)
    results = score_group(model, data, asked)
    for image, result in zip(data, results, strict=True):
        winner, scores = by_hand(model, image, asked.plan, asked.candidates, np.zeros(7))
        assert result.order[0] == winner
        offset = result.unconditional if score == "pmi" else 0.0
        assert result.scores[winner] == pytest.approx(scores[winner] - offset, abs=1e-9)
    assert early or len(model.cells()) == len(set(model.cells())), "a shared segment was scored again"
    assert model.largest <= max(per_batch, 10)


def test_without_prefix_reuse_batches_do_not_depend_on_the_tokens():
    asked = replace(request("2:5,4:1:3", per_batch=50), reuse_prefix=False)
    apart, alike = Counting(), Counting()
    score_group(apart, samples_sharing([[0, 0], [0, 0]]), asked)
    results = score_group(alike, samples_sharing([[4, 2], [0, 1]]), asked)
    assert len(alike.seen) == len(apart.seen)
    assert [r.tokens_scored for r in results] == [asked.plan.tokens(7, Counting.segment_ends)] * 2


def test_on_a_real_model_prefix_reuse_changes_no_score(golden):
    model = VARLikelihood(golden.var(), golden.vqvae().quantize)
    own = golden.tokens()[:, None].numpy()
    data = np.concatenate([own] * 4, 1)
    for sample, scales in ((1, 3), (2, 2), (3, 3)):  # a sample, and the scales that it shares with its image
        end = model.segment_ends[scales - 1]
        data[:, sample, end:] = (data[:, sample, end:] + sample) % golden.meta["config"]["vocab_size"]
    apart = [score_group(model, data[:, [s]], request("exhaustive", range(10), samples=1, keep=True)) for s in range(4)]
    staged = score_group(model, data, request("2:8,4:3,4:1:4", range(10), per_batch=200, samples=4))
    for g, result in enumerate(staged):
        last = result.stages[-1]
        expected = np.mean([a[g].scores for a in apart], 0)[last.candidates]
        assert np.abs(last.scores - expected).max() < 1e-3
        assert result.tokens_scored < request("2:8,4:3,4:1:4", range(10), samples=4).plan.tokens(10, model.segment_ends)


@settings(max_examples=30)
@given(adaptive, st.integers(1, 200), st.integers(0, 1000))
def test_images_progress_at_their_own_pace_as_the_simulation_says(plan, per_batch, seed):
    model, data = Counting(seed), tokens(images=4, seed=seed)
    full = score_group(model, data, replace(request("exhaustive:3"), keep_segments=True))
    table = ScoreTable.of(np.stack([r.segment_log_prob for r in full]), np.zeros(7), model.segment_ends)
    model.seen.clear()
    asked = request(plan, per_batch=per_batch)
    outcome = simulate(asked.plan, table)
    results = score_group(model, data, asked)
    assert len(model.seen) == len(set(model.seen)), "a cell was scored twice"
    assert [r.order[0] for r in results] == outcome.winner_n.tolist()
    assert [r.tokens_scored for r in results] == outcome.tokens_n.tolist()
    for g, result in enumerate(results):
        assert len(result.stages) == (~np.isnan(outcome.by_stage_JnN[:, g])).any(1).sum()
        assert result.posterior == pytest.approx(posterior(outcome.by_stage_JnN[:, [g]])[0])
        assert len(result.stages[-1].survivors) == 1


@settings(max_examples=40)
@given(plans | adaptive | growing | begun_early, st.integers(1, 200), st.integers(0, 60), common)
def test_caches_beyond_the_limit_are_scored_again_and_the_numbers_stay(plan, per_batch, limit, shared_GS):
    """Memory is bounded by the limit and one batch; without the limit no cell is scored twice (above)."""
    data, free, tight = samples_sharing(shared_GS), Counting(), Counting()
    asked = request(plan, per_batch=per_batch)
    expected = score_group(free, data, asked)
    results = score_group(tight, data, replace(asked, max_cached_tokens=limit))
    for a, b in zip(expected, results, strict=True):
        assert a.order.tolist() == b.order.tolist() and a.posterior == pytest.approx(b.posterior)
        assert b.tokens_scored >= a.tokens_scored
    assert set(tight.cells()) == set(free.cells()) and tight.largest <= max(per_batch, 10)
    # the limit, a copy of a part of it, a batch of originals, and a batch of their other samples
    assert tight.peak <= 2 * limit + 2 * max(per_batch, 10)
    if limit == 0 and not np.any(shared_GS):  # samples may start from their image in the same batch
        assert not tight.extended, "a cache was kept"


class Adapted(Counting):
    """Classes 5 and 6 have adapters of their own; records the sequences and classes of every batch."""

    def __init__(self):
        super().__init__()
        self.contents = []

    def adapter(self, class_id_N):
        return np.where((class_id_N >= 5) & (class_id_N < 7), class_id_N, 0)

    def extend(self, state, stop, *, keep_cache_segments):
        self.contents.append(tuple(zip(map(tuple, state.tokens.tolist()), state.classes.tolist(), strict=True)))
        return super().extend(state, stop, keep_cache_segments=keep_cache_segments)


@pytest.mark.parametrize("score", ["log-likelihood", "pmi"])
def test_classes_with_adapters_of_their_own_do_not_change_the_batches_of_the_others(score):
    alone, together = Adapted(), Adapted()
    asked = request("exhaustive", range(5), per_batch=130, score=score)
    more = request("exhaustive", range(7), per_batch=130, score=score)
    assert asked.images_per_group(alone) == more.images_per_group(together)
    score_group(alone, tokens(), asked)
    score_group(together, tokens(), more)
    old = [b for b in together.contents if {together.adapter(np.array(c)).item() for _, c in b} == {0}]
    assert old == alone.contents
    assert all(len({together.adapter(np.array(c)).item() for _, c in b}) == 1 for b in together.contents)


def test_a_new_batch_stores_no_more_keys_and_values_than_it_may():
    staged, whole = Counting(), Counting()
    for model, plan, limit in ((staged, "3:2,4:1", 13), (whole, "4:1", 5)):
        asked = replace(request(plan, samples=1), cached_tokens_per_batch=limit)
        score_group(model, tokens(images=1, samples=1), asked)
    assert staged.batches == [2, 2, 2, 1, 2]  # of 6 stored tokens a pair; the last batch is of survivors
    assert whole.batches == [7], "nothing is stored"


def test_survivors_of_several_batches_are_joined_as_far_as_one_pass_takes_them():
    joining, apart = Counting(), Counting()
    apart.joins = False
    for model in (joining, apart):
        score_group(model, tokens(images=12), request("3:2,4:1", per_batch=60))
    first = [10] * 3 + [9] * 6  # of 6 tokens a pair
    assert joining.batches == [*first, 6, 5, 5, 6, 2]  # of 10 tokens in all
    assert apart.batches == [*first, 2, 4, 3, 2, 3, 2, 2, 4, 2]


def test_token_log_probabilities_come_back_in_the_order_of_the_candidates():
    model, data = Counting(), tokens(samples=1)
    results = score_group(model, data, request("exhaustive", [5, 0, 3], per_batch=17, samples=1, keep=True))
    for image, result in zip(data, results, strict=True):
        expected = np.stack([model.log_prob(image[0], c) for c in (5, 0, 3)])
        assert np.array_equal(result.token_log_prob[:, 0], expected)


def test_equal_scores_fall_to_the_first_candidate():
    model = Counting()
    model.log_prob = lambda tokens_L, class_id: np.full(10, -1.0, np.float32)
    (result,) = score_group(model, tokens(images=1), request("2:3,4:1"))
    assert result.order.tolist() == list(range(7)) and result.margin == 0.0


def test_a_strong_prior_decides():
    prior = np.where(np.arange(7) == 4, 0.0, -1e6)
    for plan in ("exhaustive", "1:2,4:1"):
        assert all(r.order[0] == 4 for r in score_group(Counting(), tokens(), request(plan, prior=prior)))


def test_staged_scores_equal_exhaustive_scores_on_a_real_model(golden):
    model = VARLikelihood(golden.var(), golden.vqvae().quantize)
    data = golden.tokens()[:, None].numpy()
    full = score_group(model, data, request("exhaustive", range(10), samples=1))
    for per_batch in (50, 10_000):
        staged = score_group(model, data, request("1:9,2:6,3:4,4:1", range(10), samples=1, per_batch=per_batch))
        for a, b in zip(full, staged, strict=True):
            last = b.stages[-1]
            assert np.abs(last.scores - a.scores[last.candidates]).max() < 1e-3
            assert b.tokens_scored < a.tokens_scored


class Published(Counting):
    """The segments of a VAR of ten scales; records every forward pass."""

    segment_ends = (1, 5, 14, 30, 55, 91, 155, 255, 424, 680)
    best_first = (53, 20, 91, 2, 22, 37, 58, 59, 87, 93)

    def __init__(self):
        super().__init__()
        self.passes = {}

    def log_prob(self, tokens_L, class_id):
        rank = self.best_first.index(class_id) if class_id in self.best_first else 50
        return np.full(680, -1 - rank / 100, np.float32)

    def extend(self, state, stop, *, keep_cache_segments):
        start = state.scored
        log_prob_PT = super().extend(state, stop, keep_cache_segments=keep_cache_segments)
        pairs, tokens = log_prob_PT.shape
        self.passes.setdefault((start + 1, stop, tokens, keep_cache_segments), []).append(pairs)
        return log_prob_PT


def test_the_worked_trace_in_the_engine_is_what_happens():
    data = np.random.default_rng(0).integers(0, 4096, (1, 3, 680))
    data[:, 1, :14] = data[:, 0, :14]  # sample 1 shares three segments with the image
    ids = np.arange(100)
    asked = ScoringRequest(
        candidates=ids,
        plan=parse_plan("6:10,10:3,10:1:3", segments=10, candidates=100, samples=3),
        score=score_function("log-likelihood"),
        log_prior=np.zeros(100),
        tokens_per_batch=2048,
    )
    model = Published()
    (result,) = score_group(model, data, asked)
    assert result.order[0] == 53 and f"{result.tokens_scored:,} tokens in all" in engine.__doc__
    rows = [re.split(r" {2,}", line.strip()) for line in engine.__doc__.splitlines() if line.startswith("    ")]
    traced = [row[-4:-1] for row in rows[1:]]
    assert traced == [[f"{a}-{b}", ", ".join(map(str, n)), str(t)] for (a, b, t, _), n in model.passes.items()]
    assert [keep for _, _, _, keep in model.passes] == [6, 3, 0, 0]
    assert [row[-1].split(" of ")[0] for row in rows[1:]] == ["segments 1-6", "segments 1-3", "nothing", "nothing"]

"""What the engine has computed for a group of images, and which candidates are still in play.

Shapes: G images, N candidates, O orders, S samples, K segments, P pairs, T tokens, L tokens of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avarc_cli.errors import AvarcError
from avarc_cli.scoring.combining import combine, combine_log_p
from avarc_cli.scoring.plan import Bool, Stage
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import FloatN, ImageScores, IntN, StageScores, summarize


@dataclass(frozen=True)
class Pairs:
    """P pairs of a token sequence (image, order, sample) and a class (column), as indices (P,) into the table."""

    image: IntN
    column: IntN
    order: IntN
    sample: IntN

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: IntN) -> Pairs:
        """These pairs only."""
        return Pairs(self.image[rows], self.column[rows], self.order[rows], self.sample[rows])

    @classmethod
    def joined(cls, several: Sequence[Pairs]) -> Pairs:
        """All of these pairs, one after the other."""
        each = ((pairs.image, pairs.column, pairs.order, pairs.sample) for pairs in several)
        return cls(*map(np.concatenate, zip(*each, strict=True)))


class PendingTransfer:
    """Log-probabilities of segments start .. stop - 1 of some pairs, on their way from the device."""

    def __init__(self, pairs: Pairs, start: int, stop: int, log_prob_PT: Tensor) -> None:
        self.pairs, self.start, self.stop = pairs, start, stop
        self._host_PT, self._arrival = log_prob_PT.to("cpu", non_blocking=log_prob_PT.is_cuda), None
        if log_prob_PT.is_cuda:
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(log_prob_PT.device))

    def wait(self) -> Tensor:
        """(P, T) float32 on the host. Raises AvarcError if some are not finite."""
        if self._arrival is not None:
            self._arrival.synchronize()
        if not bool(self._host_PT.isfinite().all()):
            raise AvarcError(
                "the model returned a log-probability that is not a number",
                "low precisions overflow in large models",
                "use --precision bf16 or fp32",
            )
        return self._host_PT


class LogProbTable:
    """Sums of token log-probabilities in cells (image, column, order, sample, segment), float64.

    The columns are the candidates. If the score needs the unconditional class, it is the first column, and no stage
    drops it.
    """

    def __init__(
        self,
        request: ScoringRequest,
        segment_ends: tuple[int, ...],
        images: int,
        samples: int,
        order_GOL: IntN | None = None,
    ) -> None:
        """order_GOL: the position that is scored j-th, of each image and order; None for the order of the positions."""
        self.request, self.ends, self.order_GOL = request, (0, *segment_ends), order_GOL
        self.first_candidate = int(request.score.needs_unconditional)
        """Column of the first candidate."""
        columns, length = request.columns, segment_ends[-1]
        orders = 1 if order_GOL is None else order_GOL.shape[1]
        self.sums_GNOSK = np.full((images, columns, orders, samples, len(segment_ends)), np.nan)
        """The sums; N is the columns; nan where not scored yet."""
        self.token_log_prob = np.zeros((images, columns, orders, length), np.float32) if request.keep_tokens else None
        """Of sample 0, (G, columns, O, L) at the tokens' own positions, if requested."""
        self.estimate_GNOS = np.full(self.sums_GNOSK.shape[:-1], np.nan)
        """Estimates of whole images of the present stage, if it makes any; nan where it has not."""
        self.first_cut_GN: FloatN | None = None
        """Scores of the first cut, if the plan begins with one."""
        self.kept_estimates: list[FloatN] = []
        """Of each entry of `request.keep_estimates`, (G, columns)."""
        self.tokens_scored_G = np.zeros(images, dtype=np.int64)
        self.alive = np.ones((images, columns), dtype=bool)
        """Columns that no stage has dropped, (G, columns)."""
        self.undecided_G = np.ones(images, dtype=bool)
        """Images that had several candidates when the current stage began; the others are not scored further."""
        self.sure: Bool | None = None
        """Of a plan with slack: those that exact scores would not have dropped either (`Stage.sure`), (G, columns)."""
        if any(stage.slack for stage in request.plan.stages):
            self.sure = self.alive.copy()
        self._alive_before = self.alive.copy()  # when the current stage began
        self._stages: list[list[StageScores]] = [[] for _ in range(images)]
        self._pending: list[PendingTransfer] = []

    def in_play(self, pairs: Pairs) -> npt.NDArray[np.bool_]:
        """Which of these pairs are still to be scored, (P,)."""
        in_play_P: npt.NDArray[np.bool_] = self.alive[pairs.image, pairs.column] & self.undecided_G[pairs.image]
        return in_play_P

    def enqueue(self, transfer: PendingTransfer) -> None:
        """Enter these results in the table when they are needed (`drain`)."""
        self._pending.append(transfer)
        np.add.at(self.tokens_scored_G, transfer.pairs.image, self.ends[transfer.stop] - self.ends[transfer.start])

    def drain(self, keep: int = 0) -> None:
        """Wait for the pending results and enter them in the table, but for the last `keep` of them.

        Raises: AvarcError if some are not finite.
        """
        while len(self._pending) > keep:
            self._enter(self._pending.pop(0))

    def _enter(self, transfer: PendingTransfer) -> None:
        log_prob_PT, pairs, ends = transfer.wait(), transfer.pairs, self.ends
        start = ends[transfer.start]
        for k in range(transfer.start, transfer.stop):
            segment_PT = log_prob_PT[:, ends[k] - start : ends[k + 1] - start]
            sums_P = segment_PT.double().sum(1).numpy()
            self.sums_GNOSK[pairs.image, pairs.column, pairs.order, pairs.sample, k] = sums_P
        if self.token_log_prob is not None and pairs.sample[0] == 0:  # a batch has originals only, or none
            self._enter_tokens(pairs, start, ends[transfer.stop], log_prob_PT)

    def _enter_tokens(self, pairs: Pairs, start: int, stop: int, log_prob_PT: Tensor) -> None:
        """Enter the tokens that are scored start-th to (not including) stop-th, at their own positions."""
        assert self.token_log_prob is not None
        if self.order_GOL is None:
            self.token_log_prob[pairs.image, pairs.column, pairs.order, start:stop] = log_prob_PT
            return
        position_PT = self.order_GOL[pairs.image, pairs.order, start:stop]
        image_P1, column_P1, order_P1 = (index[:, None] for index in (pairs.image, pairs.column, pairs.order))
        self.token_log_prob[image_P1, column_P1, order_P1, position_PT] = log_prob_PT

    def forget_sums(self) -> None:
        """Forget the sums of images that are not decided: they are scored again, in another precision."""
        self.sums_GNOSK[self.undecided_G] = np.nan

    def begin_estimates(self) -> None:
        """Forget the estimates of earlier stages, but those of images that they have decided."""
        self.estimate_GNOS[self.undecided_G] = np.nan

    def enter_estimate(self, transfer: PendingTransfer, stage: Stage) -> None:
        """Enter `LikelihoodModel.block_parallel` of these pairs: its tokens that are not revealed, for all tokens.

        Source: the order-agnostic bound of arXiv:2110.02037, one term.
        """
        revealed, length = self.ends[stage.segments], self.ends[-1]
        rest_P = transfer.wait()[:, revealed:].double().sum(1).numpy() * (length / (length - revealed))
        pairs = transfer.pairs
        self.estimate_GNOS[pairs.image, pairs.column, pairs.order, pairs.sample] = rest_P
        np.add.at(self.tokens_scored_G, pairs.image, stage.estimate_cost(self.ends[1:]))

    def enter_first_cut(self, scores_GN: FloatN) -> None:
        """Enter the scores of a first cut; the unconditional class has none."""
        self.begin_estimates()
        self.first_cut_GN = scores_GN
        self.estimate_GNOS[:, : self.first_candidate] = 0.0
        self.estimate_GNOS[:, self.first_candidate :] = scores_GN[..., None, None]

    def keep_estimates(self) -> None:
        """Keep the present estimates, of the first order and the images themselves, to be returned."""
        self.kept_estimates.append(self.estimate_GNOS[:, :, 0, 0].copy())

    def copy_from_original(self, pairs: Pairs, stop: int) -> None:
        """Give these pairs the sums of their image's own tokens in the first `stop` segments, which are the same."""
        image, column, order, sums = pairs.image, pairs.column, pairs.order, self.sums_GNOSK
        sums[image, column, order, pairs.sample, :stop] = sums[image, column, order, 0, :stop]

    def drop(self, stage: Stage) -> tuple[FloatN, FloatN]:
        """Drop the candidates that the stage's rule drops; those that are not scored yet stay.

        Returns: log p(x|y), and the score with the prior, of every candidate (G, N); nan where cells are missing.
        """
        first = self.first_candidate
        log_p = self._log_likelihood(stage)
        log_p_GNO, prior_N = log_p[:, first:], self.request.prior(self.ends[self._covered(stage)])
        unconditional_GO = log_p[:, 0] if first else np.full((len(log_p), stage.orders), np.nan)
        scores_GNO = self.request.score.formula(log_p_GNO, unconditional_GO[:, None]) + prior_N[:, None]
        scores_GN = combine(self.request.combine, scores_GNO)
        if stage.cut_weight:
            assert self.first_cut_GN is not None
            scores_GN = scores_GN + stage.cut_weight * self.first_cut_GN
        sure_GN = None if self.sure is None else self.sure[:, first:]
        self.alive[:, first:] = stage.survivors(self.alive[:, first:], scores_GN, sure_GN)
        return combine_log_p(self.request.combine, log_p_GNO), scores_GN

    def _log_likelihood(self, stage: Stage) -> FloatN:
        """log p of the stage's segments in each of its orders, averaged over its samples, (G, columns, O)."""
        if stage.estimated:
            estimate: FloatN = self.estimate_GNOS[:, :, : stage.orders, : stage.samples].mean(-1)
            return estimate
        log_p: FloatN = self.sums_GNOSK[:, :, : stage.orders, : stage.samples, : stage.segments].sum(-1).mean(-1)
        return log_p

    def _covered(self, stage: Stage) -> int:
        """Segments that the scores of a stage stand for."""
        return len(self.ends) - 1 if stage.estimated else stage.segments

    def close_stage(self, stage: Stage, seconds: float) -> None:
        """Drop candidates and record the stage of every image that took part in it."""
        first = self.first_candidate
        log_p_GN, scores_GN = self.drop(stage)
        if self.sure is not None:
            self.sure[:, first:] &= stage.sure(self._alive_before[:, first:], scores_GN)
        images = np.nonzero(self.undecided_G)[0]
        for g in images:
            took_part = np.nonzero(self._alive_before[g, first:])[0]
            record = StageScores(
                segments=self._covered(stage),
                tokens=self.ends[self._covered(stage)],
                samples=stage.samples,
                orders=stage.orders,
                estimated=stage.estimated or stage.cut_weight > 0,
                precision=stage.precision,
                candidates=took_part,
                scores=scores_GN[g, took_part],
                log_likelihood=log_p_GN[g, took_part],
                survivors=np.nonzero(self.alive[g, first:])[0],
                seconds=seconds / len(images),
            )
            self._stages[g].append(record)
        self.undecided_G = self.alive[:, first:].sum(1) > 1
        self._alive_before = self.alive.copy()

    def results(self) -> list[ImageScores]:
        """The scores of each image, in order."""
        return [self._result(g, tuple(stages)) for g, stages in enumerate(self._stages)]

    def _result(self, g: int, stages: tuple[StageScores, ...]) -> ImageScores:
        request, first = self.request, self.first_candidate
        last = request.plan.stages[len(stages) - 1]
        unconditional = combine_log_p(request.combine, self._log_likelihood(last)[g, 0]) if first else np.nan
        log_prior_N = np.zeros(len(request.candidates))  # what was added to each candidate's last score
        for record in stages:
            log_prior_N[record.candidates] = request.prior(self.ends[record.segments])[record.candidates]
        return summarize(
            stages,
            len(request.candidates),
            log_prior_N=log_prior_N,
            tokens_scored=int(self.tokens_scored_G[g]),
            temperature=request.temperature,
            unconditional=float(unconditional),
            token_log_prob=None if self.token_log_prob is None else self.token_log_prob[g, first:],
            segment_log_prob=self.sums_GNOSK[g, first:].copy() if request.keep_segments else None,
            estimates=np.stack([e[g, first:] for e in self.kept_estimates], -1) if self.kept_estimates else None,
        )

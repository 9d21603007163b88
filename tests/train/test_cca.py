"""CCA fine-tuning: the published loss, and students that train only what they should."""

import math

import pytest
import torch

from avarc_cli.errors import UsageError
from avarc_cli.layers import low_rank
from avarc_cli.train.cca import Contrast, student_of


def test_the_loss_is_that_of_the_paper():
    own, other = [30.0, -10.0], [5.0, -40.0]

    def log_sigmoid(x):
        return -math.log1p(math.exp(-x))

    beta, weight = 0.02, 300.0
    first = -log_sigmoid(beta * own[0]) - weight * log_sigmoid(-beta * other[0])
    second = -log_sigmoid(beta * own[1]) - log_sigmoid(beta * other[1])  # its class was dropped: a positive
    contrast = Contrast(beta=beta, weight=weight)
    loss = contrast.loss(torch.tensor(own + other), torch.tensor([True, False]))
    assert loss.item() == pytest.approx((first + second) / 2 / weight, rel=1e-6)
    small = Contrast(beta=beta, weight=0.5).loss(torch.tensor(own + other), torch.tensor([True, True]))
    assert small.item() == pytest.approx(
        sum(-log_sigmoid(beta * a) - 0.5 * log_sigmoid(-beta * b) for a, b in zip(own, other, strict=True)) / 2
    ), "a weight below 1 does not enlarge the loss"


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"weight": -1.0}, {"class_dropout": 1.0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=r"beta is above 0|class dropout is 1\.0"):
        Contrast(**wrong)


def test_a_student_starts_equal_to_its_teacher_without_sharing_memory(tiny):
    model = tiny.likelihood()
    whole = student_of(model, 0, torch.Generator())
    assert all(
        p.requires_grad and p.data_ptr() != q.data_ptr()
        for p, q in zip(whole.network.parameters(), model.network.parameters(), strict=True)
    )
    adapted = student_of(model, 2, torch.Generator().manual_seed(0)).network
    x = torch.randn(3, model.config.width)
    for block, taught in zip(model.network.layers, adapted.layers, strict=True):
        assert torch.equal(block.ffn.fc1(x), taught.ffn.fc1(x))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all("parametrizations.weight.0" in name for name in trained)
    names = {name.split(".", 2)[2] for name in low_rank.attached(adapted)}
    assert names == {"attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2"}

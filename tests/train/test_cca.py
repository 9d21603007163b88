"""CCA fine-tuning: the published loss, students that train only what they should, models without an order."""

import math
from types import MappingProxyType, SimpleNamespace

import pytest
import torch

from avarc_cli.errors import UsageError
from avarc_cli.layers import low_rank
from avarc_cli.models.maskgit.family import UVIT
from avarc_cli.tokenizers.titok.family import FAMILY as TITOK
from avarc_cli.train.cca import Contrast, fit, student_of
from avarc_cli.train.recipe import Recipe


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
    assert trained and all(".change." in name for name in trained)
    names = {name.split(".", 2)[2] for name in low_rank.attached(adapted)}
    assert names == {"attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2"}


class Batches:
    """The same tokens (B, L) and classes (B,) at every step."""

    def __init__(self, tokens, labels):
        self.tokens, self.labels = tokens, labels

    subject = MappingProxyType({"images": "made up"})

    def batch(self, step, rows):
        return rows.take(self.tokens), self.labels, torch.Generator().manual_seed(step)


def test_a_model_of_hidden_tokens_is_compared_along_one_random_order_cut_into_its_passes(monkeypatch, tmp_path):
    torch.manual_seed(0)
    titok = TITOK.new(image_size=8, patch=4, num_tokens=6, vocab_size=20, code_channels=4, width=64, depth=1)
    reference = UVIT.new(titok, 3, depth=3, width=32, heads=2).with_steps(4)
    student = student_of(reference, 0, torch.Generator())
    with torch.no_grad():
        for p in student.network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    start = student_of(student, 0, torch.Generator())
    orders, shown = [], []
    score = type(reference).token_log_prob

    def spy(model, tokens, classes, order=None):
        orders.append(order)
        return score(model, tokens, classes, order)

    monkeypatch.setattr(type(reference), "token_log_prob", spy)
    tokens, labels = torch.randint(20, (5, 6)), torch.tensor([0, 1, 2, 2, 0])
    data, recipe = Batches(tokens, labels), Recipe(steps=2, batch_size=5, lr=1e-3)
    contrast = Contrast(class_dropout=0.0)
    tokenizer = SimpleNamespace(network=titok)
    fit(
        reference, student, tokenizer, data, recipe, contrast, tmp_path / "x", lambda step, values: shown.append(values)
    )
    assert all(torch.equal(order.sort(1).values, torch.arange(6).expand(10, 6)) for order in orders)
    assert all(torch.equal(order, orders[0][:5].repeat(2, 1)) for order in orders[:2]), "one for all four likelihoods"
    assert not torch.equal(orders[0], orders[2]) and len(orders[0].unique(dim=0)) > 1, "another for each image and step"

    def log_likelihood(model, classes):  # pass by pass, as it is classified
        state = model.begin(tokens, torch.arange(5), classes, orders[0][:5])
        return sum(model.extend(state, stop, keep_cache_segments=0).sum(1) for stop in (1, 2, 3, 4))

    for name, classes in {"own": labels, "others": labels.roll(1)}.items():
        gain = log_likelihood(start, classes) - log_likelihood(reference, classes)
        assert shown[0][name] == pytest.approx(gain.mean().item(), abs=1e-4)

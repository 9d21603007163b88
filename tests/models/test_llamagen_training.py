"""Training of LlamaGen's tokenizer: the codebook loss and its gradients are the reference implementation's."""

from __future__ import annotations

import pytest
import torch
from conftest import GOLDEN
from golden import fill

from avarc_cli.tokenizers.llamagen_vq.family import FAMILY
from avarc_cli.tokenizers.llamagen_vq.loss import LlamaGenVQLoss


def network(codes, dim):
    return FAMILY.new(image_size=8, vocab_size=codes, code_channels=dim, ch=32, ch_mult=(1, 1), blocks=1)


def entropy_loss(z, codes, ratio):
    """A term of the reference that its recipe weighs with 0, and the file's gradients contain."""
    distance = torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), codes).square()
    p = torch.softmax(-distance / 0.01, dim=1)
    log_p = torch.log_softmax(-distance / 0.01 + 1e-5, dim=1)
    mean = p.mean(0)
    return ratio * (-(p * log_p).sum(1).mean() + (mean * (mean + 1e-5).log()).sum())


def test_the_codebook_loss_and_its_gradients_are_the_references():
    meta, arrays = fill.load_golden(GOLDEN / "train_llamagen_vq_tiny.npz")
    tokenizer = network(meta["config"]["codes"], meta["config"]["dim"])
    codebook = tokenizer.quantize.embedding.weight
    codebook.data = torch.from_numpy(fill.state_dict(meta["keys"], meta["seed"], meta["scales"])["embedding.weight"])
    z, probe = torch.from_numpy(arrays["z"]).requires_grad_(), torch.from_numpy(arrays["probe"])
    made = LlamaGenVQLoss(tokenizer).quantize(z)
    straight = made.latents + (made.codes - made.latents).detach()
    assert torch.equal(made.used_N, torch.from_numpy(arrays["tokens"]))
    assert made.loss.item() == pytest.approx(float(arrays["vq_loss"] + arrays["commit_loss"]), abs=1e-6)
    assert torch.allclose(straight, torch.from_numpy(arrays["quantized"]), atol=1e-6)
    entropy = entropy_loss(made.latents, tokenizer.quantize.codes(), meta["config"]["entropy_ratio"])
    assert entropy.item() == pytest.approx(float(arrays["entropy_loss"]), abs=1e-5)
    (made.loss + entropy + (straight * probe).sum()).backward()
    for ours, name in ((z.grad, "grad_z"), (codebook.grad, "grad_embedding")):
        assert torch.allclose(ours, torch.from_numpy(arrays[name]), atol=1e-4, rtol=1e-3), name


def test_codes_that_fall_out_of_use_become_vectors_of_the_batch():
    torch.manual_seed(0)
    tokenizer = network(codes=256, dim=4)
    loss, before = FAMILY.training_loss(tokenizer), tokenizer.quantize.embedding.weight.detach().clone()
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    for step in (98, 99):
        value, shown = loss(images, step, 1000, torch.Generator().manual_seed(step))
        loss.before_update(step, 1000)
    changed = (tokenizer.quantize.embedding.weight != before).any(dim=1)
    assert 256 - 32 <= int(changed.sum()) < 256, "32 cells can use 32 codes"
    revived = tokenizer.quantize.embedding.weight[changed]
    assert torch.allclose(revived.norm(dim=1), torch.ones(len(revived)), atol=1e-5)
    value.backward()  # although codes have changed since the forward pass
    assert set(shown) == {"rmse", "vq"}

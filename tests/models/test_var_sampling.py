import numpy as np
import torch

from avarc_cli.models.var.sampling import restrict, sample


def streams(count, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


@torch.inference_mode()
def test_greedy_guided_pictures_are_the_references(golden):
    var, vqvae = golden.var(), golden.vqvae()
    labels = torch.from_numpy(golden.arrays["greedy_labels"])
    tokens = sample(
        var,
        vqvae.quantize,
        labels,
        guidance=float(golden.arrays["greedy_cfg"]),
        top_k=1,
        generators=streams(len(labels)),
    )
    picture = (vqvae.reconstruct(tokens) + 1) / 2
    assert np.abs(picture.numpy() - golden.arrays["greedy_image"]).max() <= golden.tolerances["reconstruction"]


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(tiny):
    var, vqvae, labels = tiny.var(), tiny.vqvae(), torch.tensor([1, 2])
    draw = lambda seed: sample(var, vqvae.quantize, labels, generators=streams(2, seed))  # noqa: E731
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(9))


def test_a_picture_does_not_depend_on_the_others_of_its_batch(tiny):
    var, vqvae, labels = tiny.var(), tiny.vqvae(), torch.tensor([1, 2, 0])
    together = sample(var, vqvae.quantize, labels, generators=streams(3))
    alone = sample(var, vqvae.quantize, labels[1:2], generators=streams(3)[1:2])
    assert torch.equal(together[1:2], alone)


def test_a_head_in_half_precision_draws_as_well(tiny):  # as on CUDA
    var, vqvae = tiny.var(), tiny.vqvae()
    var.head.to(torch.bfloat16)
    tokens = sample(var, vqvae.quantize, torch.tensor([1]), generators=streams(1))
    assert tokens.shape == (1, var.config.ends[-1]) and int(tokens.max()) < var.config.vocab_size


def test_top_k_keeps_the_k_likeliest():
    logits = torch.tensor([[[0.0, 3.0, 1.0, 2.0]]])
    assert restrict(logits, 2, 0.0).isfinite().tolist() == [[[False, True, False, True]]]


def test_top_p_keeps_the_fewest_that_hold_the_probability():
    logits = torch.tensor([[[0.1, 0.5, 0.15, 0.25]]]).log()
    assert restrict(logits, 0, 0.7).isfinite().tolist() == [[[False, True, False, True]]]
    assert restrict(logits, 0, 0.5).isfinite().tolist() == [[[False, True, False, False]]]
    assert restrict(logits, 0, 1e-9).isfinite().tolist() == [[[False, True, False, False]]]

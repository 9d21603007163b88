"""Parity with the reference implementation, within the tolerances of each golden file."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import load_golden

from avarc_cli.layers.precision import FP32
from avarc_cli.models.var import reference
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.objective import Draw, Objective


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float) -> bool:
    return float((ours.double() - torch.from_numpy(theirs).double()).abs().max()) <= tolerance


def token_log_prob(golden, tokens, classes, stops=None, library="torch", quantizer=None):
    """Log-probabilities of every token under every class, the scales taken in the runs that end at `stops`."""
    var = golden.var().set_precision(replace(FP32, library=library))
    model = VARLikelihood(var, quantizer or golden.vqvae().quantize)
    pairs = torch.cartesian_prod(torch.arange(len(tokens)), torch.arange(len(classes)))
    state = model.begin(tokens, pairs[:, 0], torch.as_tensor(classes).long()[pairs[:, 1]])
    runs = [model.extend(state, stop, keep_cache_segments=stop) for stop in stops or [len(model.segment_ends)]]
    return torch.cat(runs, dim=1).view(len(tokens), len(classes), -1)


@torch.inference_mode()
def test_tokens_latents_and_reconstruction_are_the_references(golden):
    vqvae, arrays = golden.vqvae(), golden.arrays
    latents = vqvae.encode(golden.images())
    tokens = vqvae.tokenize(latents)
    assert np.array_equal(tokens.numpy(), arrays["tokens"])
    assert close(latents, arrays["latents"], golden.tolerances["latents"])
    assert close(vqvae.reconstruct(tokens), arrays["reconstruction"], golden.tolerances["reconstruction"])
    assert close(vqvae.quantize.teacher_input(tokens), arrays["var_input"], golden.tolerances["var_input"])


@torch.inference_mode()
def test_neighbours_are_latents_with_noise_quantized_again(golden):
    vqvae = golden.vqvae()
    noised = vqvae.encode(golden.images()) + 0.1 * torch.from_numpy(golden.arrays["noise"])  # (S, B, Z, h, h)
    tokens = vqvae.tokenize(noised.flatten(0, 1)).view(golden.arrays["neighbor_tokens"].shape)
    assert np.array_equal(tokens.numpy(), golden.arrays["neighbor_tokens"])


@pytest.mark.parametrize("library", ["torch", "onednn", "avarc"])
def test_token_log_probabilities_are_the_references(golden, threads, library):
    ours = token_log_prob(golden, golden.tokens(), golden.arrays["classes"], library=library)
    assert close(ours, golden.arrays["token_log_prob"], golden.tolerances["token_log_prob"])
    assert bool((ours <= 0).all())
    total = ours.double().sum(-1).numpy()
    assert np.allclose(total, golden.arrays["log_likelihood"], rtol=golden.tolerances["log_likelihood_rel"], atol=0)


def test_neighbour_log_likelihoods_are_the_references(golden):
    for tokens, expected in zip(
        golden.arrays["neighbor_tokens"], golden.arrays["neighbor_log_likelihood"], strict=True
    ):
        ours = token_log_prob(golden, torch.from_numpy(tokens).long(), golden.arrays["classes"]).double().sum(-1)
        assert np.allclose(ours.numpy(), expected, rtol=2e-5, atol=0)  # stored in float32


def test_scale_by_scale_equals_all_at_once(golden):
    tokens, classes = golden.tokens(), golden.arrays["classes"]
    stepwise = token_log_prob(golden, tokens, classes, stops=[1, 2, 3, 4])
    assert close(stepwise, token_log_prob(golden, tokens, classes).numpy(), 1e-5)


@torch.inference_mode()
def test_logits_are_the_references(golden):
    var, vqvae = golden.var(), golden.vqvae()
    class_id = torch.from_numpy(golden.arrays["classes"][:1]).long()
    rest = var.embed_rest(vqvae.quantize.teacher_input(golden.tokens()[:1]))
    x = torch.cat([var.embed_start(class_id), rest], dim=1)
    hidden = var.hidden(x, var.condition(class_id), var.config.ends)
    assert close(var.head(hidden), golden.arrays["logits_first_class"], golden.tolerances["token_log_prob"])


@pytest.mark.slow
def test_the_published_d16_shape_gives_the_references_numbers():
    golden = load_golden("var_d16")
    with torch.inference_mode():
        vqvae = golden.vqvae()
        assert np.array_equal(vqvae.tokenize(vqvae.encode(golden.images())).numpy(), golden.arrays["tokens"])
    # Of three classes, each of which takes seconds, the last two: one of ImageNet's, and the unconditional one.
    ours = token_log_prob(golden, golden.tokens(), golden.arrays["classes"][1:], quantizer=vqvae.quantize)
    assert close(ours, golden.arrays["token_log_prob"][:, 1:], golden.tolerances["token_log_prob"])
    assert np.allclose(ours.double().sum(-1).numpy(), golden.arrays["log_likelihood"][:, 1:], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["var_tiny", "var_tiny_shared_aln", "var_tiny_no_qk_norm"])
def test_the_straightforward_implementation_agrees(name):
    golden = load_golden(name)
    with torch.inference_mode():
        teacher = golden.vqvae().quantize.teacher_input(golden.tokens())
    for i, tokens in enumerate(golden.tokens()):
        classes = torch.as_tensor(golden.arrays["classes"]).long()
        plain = reference.token_log_probs(golden.tensors("var"), tokens, teacher[i : i + 1], classes)
        assert close(plain, golden.arrays["token_log_prob"][i], golden.tolerances["token_log_prob"])


def test_training_in_half_precision_reads_the_same_input(tiny, monkeypatch):
    model, read = VARLikelihood(tiny.var(), tiny.vqvae().quantize), []
    embed = model.var.embed_rest
    monkeypatch.setattr(model.var, "embed_rest", lambda teacher: read.append(teacher) or embed(teacher))
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            model.training_loss(tiny.tokens(), torch.zeros(len(tiny.tokens()), dtype=torch.int64), Objective(), Draw())
    assert torch.equal(*read)

"""MaskGen KL: parity with the reference implementation, and a bound that is checked where the density is known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill
from masked_models import given_then_hidden, mean_bound, scored

from avarc_cli import families
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.models.maskgen import latent_likelihood, latent_noise, latent_sampling
from avarc_cli.models.maskgen.config import MaskGenKLConfig
from avarc_cli.models.maskgen.diffusion import Process
from avarc_cli.models.maskgen.family import KL
from avarc_cli.models.maskgen.latent_likelihood import MaskGenKLLikelihood
from avarc_cli.models.maskgen.latent_network import MaskGenKL
from avarc_cli.models.maskgen.latent_sampling import Schedule, sample
from avarc_cli.scoring.estimator import describe
from avarc_cli.scoring.exhaustive import order_log_probs
from avarc_cli.scoring.orders import Orders
from avarc_cli.text.features import CaptionFeatures

SHORT = {"text_context_length": 9}  # positions of the captions of the golden file
CPU = torch.device("cpu")


def load():
    meta, arrays = fill.load_golden(GOLDEN / "maskgen_kl_tiny.npz")
    tensors = {k: torch.from_numpy(v) for k, v in fill.state_dict(meta["keys"], meta["seed"], meta["scales"]).items()}
    return meta, {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}, tensors


def stated(*values):
    return ConfigSources(tuple(("config.json", each) for each in values))


def network(precision="fp32"):
    meta, _, tensors = load()
    config = KL.read_config(tensors, stated(SHORT, meta["config"]), "a file")
    return MaskGenKL.from_state_dict(config, tensors, source="a file").set_precision(precisions.find(precision, CPU))


def features(text, pooled, empty=None):
    return CaptionFeatures(
        captions=tuple(map(str, range(len(text)))),
        sequence_RTD=text,
        length_R=torch.full((len(text),), text.shape[1]),
        pooled_RE=pooled[:, 0],
        empty=empty,
    )


@pytest.fixture(scope="module")
def golden():
    """(tolerance, arrays, network)."""
    meta, arrays, _ = load()
    return meta["tolerance"]["other_implementation"]["atol"], arrays, network()


def tokens_of(arrays):
    """The means of the golden moments, (2, 8, 4)."""
    return arrays["moments"].view(2, 8, 8)[:, :4].transpose(1, 2).contiguous()


def captioned(made, arrays, steps=None, *, empty=True):
    of_none = features(torch.zeros(1, 9, 48), torch.zeros(1, 1, 48)) if empty else None
    return MaskGenKLLikelihood(made, steps).with_captions(features(arrays["text"], arrays["text_pooled"], of_none))


def error(ours, theirs):
    return float((ours.double() - theirs.double()).abs().max())


@pytest.fixture(scope="module")
@torch.inference_mode()
def conditions(golden):
    """What the head is given: (tokens in the network's units, z)."""
    _, arrays, made = golden
    captions = made.captions(arrays["text"], arrays["text_pooled"][:, 0], arrays["aes_score"])
    x = tokens_of(arrays) * made.config.scale_factor
    return x, made.conditions(captions, torch.arange(2), x, arrays["mask"] == 0)


@torch.inference_mode()
def test_conditions_of_every_position_are_the_references(golden, conditions):
    tolerance, arrays, made = golden
    x, z = conditions
    assert error(x, arrays["latent"]) <= tolerance and error(z, arrays["z"]) <= tolerance
    assert error(made.score_embedding(arrays["aes_score"], 32), arrays["aes_embedding"]) <= tolerance


@torch.inference_mode()
def test_the_diffusion_of_a_token_is_the_references(golden, conditions):
    tolerance, arrays, made = golden
    process = Process.cosine()
    assert np.allclose(process.abar, arrays["alphas_cumprod"], rtol=1e-12, atol=0)
    process, t, noise = process.to(CPU), arrays["t"], arrays["noise"]
    x_t = process.noised(conditions[0].flatten(0, 1), t, noise)
    eps, v = made.head(x_t, t, made.head.conditions(arrays["z"].flatten(0, 1)))
    assert error(x_t, arrays["x_t"]) <= tolerance and error(torch.cat([eps, v], 1), arrays["net_out"]) <= tolerance
    assert np.allclose(((eps - noise) ** 2).mean(1), arrays["mse"], rtol=tolerance)
    bits = process.divergence(t, eps - noise, v) / 4 / math.log(2)
    assert np.allclose(bits, arrays["vb_bits"], rtol=tolerance, atol=1e-6)
    assert np.allclose(process.mean(x_t, t, eps), arrays["mean"], rtol=tolerance, atol=tolerance)
    assert error(process.log_variance(t, v), arrays["log_variance"]) <= tolerance


@torch.inference_mode()
def test_the_respaced_process_is_the_references(golden):
    tolerance, arrays, made = golden
    process = Process.cosine().respaced(100)
    assert np.allclose(process.abar, arrays["gen_alphas_cumprod"], rtol=1e-10, atol=0)
    assert torch.equal(process.timestep, arrays["gen_timesteps"])
    process, t = process.to(CPU), arrays["t_gen"]
    x_t = process.noised(arrays["latent"].flatten(0, 1), t, arrays["noise"])
    eps, v = made.head(x_t, process.timestep[t], made.head.conditions(arrays["z"].flatten(0, 1)))
    assert np.allclose(process.mean(x_t, t, eps), arrays["gen_mean"], rtol=tolerance, atol=tolerance)
    assert error(process.log_variance(t, v), arrays["gen_log_variance"]) <= tolerance


def test_sampling_follows_the_references_schedule(golden, monkeypatch):
    tolerance, arrays, made = golden
    model, seen = captioned(made, arrays), []

    def tokens(of_caption, of_none, weight):
        assert of_none.shape == of_caption.shape
        seen.append((of_caption.shape[1], weight))
        return 0.1 * of_caption[..., :4]

    monkeypatch.setattr(torch, "randperm", lambda length, **_: arrays["order"][0])
    generators = [torch.Generator() for _ in range(2)]
    ours = sample(made, model.captions, torch.arange(2), 2, Schedule(steps=6), generators, 2.0, tokens)
    assert np.allclose(seen, arrays["schedule"])
    assert error(ours.transpose(1, 2)[:, :, None], arrays["sample_latent"]) <= tolerance


def gaussian_head(process, mean, variance):
    """Predicts the noise of tokens of a normal distribution exactly."""

    def predict(x_t, t, condition):
        signal, noise = process.signal[t, None], process.noise[t, None]
        eps = noise * (x_t - signal * mean) / (signal**2 * variance + noise**2)
        return eps, torch.ones_like(eps)  # the variance beta_t

    return predict


def expected_bound(process, x, mean, variance):
    """The bound of one number under that head, its expectation over the noise by hand, in float64."""
    a, b = process.signal, process.noise
    v = a**2 * variance + b**2
    squared = (b * a * (x - mean) / v) ** 2 + (a**2 * variance / v) ** 2
    wider = process.log_ratio.clone()
    wider[0] = 0
    first_beta, last = 1 - process.abar[0], process.abar[-1]
    cost = process.error_weight * squared * (-wider).exp() + 0.5 * (wider + torch.expm1(-wider))
    prior = 0.5 * (last * x**2 - last - torch.log1p(-last))
    return float(-cost.sum() - 0.5 * torch.log(2 * math.pi * first_beta) - prior)


def log_normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))


@pytest.mark.parametrize(("mean", "variance", "most"), [(0.0, 1.0, 1e-9), (0.5, 0.25, 0.001), (0.1, 0.01, 0.02)])
def test_the_bound_of_an_exact_head_is_the_density_but_for_the_gap_of_the_steps(mean, variance, most):
    points = np.random.default_rng(0).normal(mean, math.sqrt(variance), 500)
    gaps = [log_normal(x, mean, variance) - expected_bound(Process.cosine(), x, mean, variance) for x in points]
    assert -1e-9 < np.mean(gaps) < most  # the variance beta_t is exact for a standard normal distribution


def one_token_model(golden, predict, process):
    """A model of the golden shape whose head is replaced, and what it makes of every token is known."""
    _, arrays, made = golden
    model = captioned(made, arrays, 1)
    head = SimpleNamespace(conditions=made.head.conditions)

    class Head:
        conditions = staticmethod(head.conditions)

        def __call__(self, x_t, t, condition):
            return predict(x_t, t, condition)

    class Network:
        head = Head()
        config, device, precision, kernels = made.config, made.device, made.precision, made.kernels
        conditions = made.conditions

    model.transformer = Network()
    model.process = process.to(CPU)
    model.probability = latent_noise.step_probabilities(process)
    return model


def in_place(model, tokens, order):
    """One draw under the first caption, (images, L) float64, at the tokens' own positions."""
    drawn = scored(model, tokens, torch.tensor([0]), (1,), order)[:, 0].double()
    return torch.empty_like(drawn).scatter_(1, order.expand_as(drawn), drawn)


@pytest.mark.parametrize("steps", [10, 1000])
def test_the_mean_over_draws_is_the_exact_sum_over_the_steps_of_the_diffusion(golden, steps):
    process = Process.cosine(steps)
    model = one_token_model(golden, gaussian_head(process.to(CPU), 0.2, 0.5), process)
    tokens, scale = tokens_of(golden[1]), model.config.scale_factor
    exact = [[sum(expected_bound(process, float(x), 0.2, 0.5) for x in each) for each in row] for row in tokens * scale]
    exact = torch.tensor(exact) + 4 * math.log(scale)
    generator = np.random.default_rng(0)
    orders = [torch.from_numpy(generator.permutation(8)) for _ in range(200)]
    draws = torch.stack([in_place(model, tokens, order) for order in orders])
    noise = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() < 4.5 * noise).all()
    assert noise.median() < 0.1  # nats; without the standard normal network it is 0.6


def test_draws_are_the_same_for_all_captions_and_do_not_depend_on_the_batch(golden):
    process = Process.cosine()
    head = gaussian_head(process.to(CPU), 0.0, 1.0)  # which does not read the caption
    model = one_token_model(golden, head, process)
    tokens, orders = tokens_of(golden[1]), torch.stack([torch.randperm(8), torch.randperm(8)])
    both = model.begin(tokens, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 2]), orders)
    both = model.extend(both, 1, keep_cache_segments=0)
    assert torch.equal(both[1], both[2])
    alone = model.begin(tokens[1:], torch.tensor([0]), torch.tensor([1]), orders[1:])
    assert torch.allclose(model.extend(alone, 1, keep_cache_segments=0)[0], both[1], atol=1e-5)


def test_evaluations_are_spread_over_the_tokens_that_are_scored():
    probability = latent_noise.step_probabilities(Process.cosine())
    order = np.array([[~0, ~1, ~2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    drawn = latent_noise.draw(order, 0, 6, 2, probability)
    assert drawn.t_BS.shape == (2, 24) and drawn.noise_BSZ.shape == (2, 24, 2)
    assert (drawn.weight_BTS[0] > 0).sum(1).tolist() == [0, 0, 0, 8, 8, 8]
    assert (drawn.weight_BTS[1] > 0).sum(1).tolist() == [4] * 6
    cumulated = probability.cumsum()
    parts = [sorted(int(8 * cumulated[t]) for t in drawn.t_BS[0][drawn.token_BS[0] == token]) for token in (3, 4, 5)]
    assert all(abs(part - rank) <= 1 for each in parts for rank, part in enumerate(each))
    again = latent_noise.draw(order[1:], 0, 6, 2, probability)
    assert torch.equal(again.noise_BSZ[0], drawn.noise_BSZ[1])
    later = latent_noise.draw(order[1:], 3, 6, 2, probability)
    assert not torch.equal(later.noise_BSZ[0], drawn.noise_BSZ[1])
    assert probability[0] > 0.05 and 0.05 < probability[-1] < 0.2


def test_the_mean_of_the_bound_over_all_masks_is_its_definition(golden):
    """With a head that knows each token's own density, every mask gives the same; the factor L / k must cancel."""
    process = Process.cosine(4)
    tiny = one_token_model(golden, lambda x, t, c: (torch.zeros_like(x), torch.full_like(x, -1.0)), process)
    tokens = tokens_of(golden[1])[:1]
    generator = np.random.default_rng(0)

    def draw(hidden):
        hidden = generator.permutation(hidden).tolist()
        return scored(tiny, tokens, torch.tensor([1]), (1,), given_then_hidden(hidden, 8)).double().sum().item()

    # eps_hat = 0 and v = -1: the squared error is 1 on average, whatever the token, and costs its weight.
    first_beta, last = 1 - process.abar[0], process.abar[-1]
    cost = process.error_weight.sum() + 0.5 * torch.log(2 * math.pi * first_beta)
    prior = 0.5 * (last * (0.7525 * tokens) ** 2 - last - torch.log1p(-last)).sum()
    exact = float(32 * (math.log(0.7525) - cost) - prior)
    assert mean_bound(8, draw) == pytest.approx(exact, rel=0.02)


def test_blocks_are_scored_given_the_blocks_before(golden):
    _, arrays, made = golden
    model, tokens = captioned(made, arrays, 4), tokens_of(arrays)
    order = torch.tensor([[7, 1, 4, 5, 2, 0, 3, 6]] * 2)
    whole = scored(model, tokens, torch.arange(3), (4,), order[0])
    changed = tokens.clone()
    changed[:, [3, 6]] += 1.0  # the last block
    assert torch.allclose(scored(model, changed, torch.arange(3), (3,), order[0]), whole[..., :6], atol=1e-4)
    changed[:, 7] += 1.0
    assert not torch.allclose(
        scored(model, changed, torch.arange(3), (3,), order[0])[..., 2:6], whole[..., 2:6], atol=1e-2
    )
    state = model.begin(tokens, torch.tensor([0, 0, 0]), torch.arange(3), order)
    model.extend(state, 2, keep_cache_segments=2)
    kept = model.select(state, torch.tensor([2, 0]))
    assert torch.allclose(model.extend(kept, 4, keep_cache_segments=0), whole[0, [2, 0], 4:], atol=1e-4)


def test_the_engine_averages_draws_of_the_bound(golden):
    _, arrays, made = golden
    model, tokens = captioned(made, arrays, 1), tokens_of(arrays)
    orders = Orders(3, seed=4, bound=True).of(np.arange(2), 8, 3)
    ours = order_log_probs(model, tokens, [0, 1, 2], 1000, orders)  # at the tokens' own positions
    for number in range(3):
        order = torch.from_numpy(orders[:, number])
        state = model.begin(tokens, torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(3).repeat(2), order)
        drawn = model.extend(state, 1, keep_cache_segments=0).view(2, 3, 8)
        sums = torch.from_numpy(ours[:, :, number]).sum(-1)
        assert torch.allclose(sums, drawn.sum(-1), rtol=1e-4)
        assert ((drawn == 0) == (order < 0)[:, None]).all()  # given tokens count nothing


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precisions_change_scores_by_their_rounding(golden, precision):
    _, arrays, made = golden
    exact, low = (
        scored(captioned(each, arrays, 4), tokens_of(arrays), torch.arange(3), (4,))
        for each in (made, network(precision))
    )
    assert 0 < (low - exact).abs().max() < 0.05 * exact.abs().max()


def test_continuous_tokens_are_drawn_image_by_image(golden, monkeypatch):
    monkeypatch.setattr(latent_sampling, "DIFFUSION_STEPS", 8)
    monkeypatch.setattr(latent_likelihood, "SCHEDULE", Schedule(steps=4))
    _, arrays, made = golden
    model = captioned(made, arrays)

    def draw(rows, seeds, guidance=2.0):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return model.sample(torch.tensor(rows), generators=generators, guidance=guidance)

    together = draw([0, 1], [5, 6])
    assert together.shape == (2, 8, 4) and together.isfinite().all()
    assert torch.allclose(together[1], draw([1], [6])[0], rtol=1e-3)
    assert not torch.allclose(together[1], draw([1], [6], 0.0)[0], rtol=1e-3)
    with pytest.raises(UsageError, match="--top-k restricts codes"):
        model.sample(torch.tensor([0]), generators=[torch.Generator()], top_k=5)
    with pytest.raises(UsageError, match="guidance needs the empty caption"):
        captioned(made, arrays, empty=False).sample(torch.tensor([0]), generators=[torch.Generator()])


def test_the_published_files_are_recognized_by_their_tensors():
    meta, _, tensors = load()
    assert families.GENERATORS.recognize(tensors, None, "a file") is KL
    config = KL.read_config(tensors, stated(meta["config"]), "a file")
    assert (config.channels, config.head_width, config.head_depth, config.scale_factor) == (4, 40, 3, 0.7525)
    assert (config.num_tokens, config.heads, config.text.positions) == (8, 4, 77)
    assert set(config.inferred) == {"aesthetic score"}
    assert {"heads", "scale factor"} < set(KL.read_config(tensors, ConfigSources(), "a file").inferred)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model": {"vq_model": {"token_size": 16}}}, "token_size is 16 there, and 4 in the tensors"),
        ({"losses": {"diffloss_d": 8}}, "diffloss_d is 8 there, and 3"),
        ({"scale_factor": -1}, "expected is a positive number"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(values, says):
    with pytest.raises(CheckpointError) as refused:
        KL.read_config(load()[2], stated(values), "a file")
    assert says in str(refused.value)


def test_every_score_is_called_a_bound(golden):
    _, arrays, made = golden
    model = captioned(made, arrays, 4)
    with pytest.raises(UsageError, match="--unsmooth is not for a model of continuous tokens"):
        model.with_steps(4, unsmooth=0.1)
    one, four, draws = Orders(1), Orders(4), Orders(8, bound=True)
    assert describe(model, one, 1, "mean") == "estimate of a lower bound of the model of 4 passes"
    for orders, rule in ((four, "mean"), (four, "log-mean-exp"), (four, "posterior"), (draws, "mean")):
        text = describe(model, orders, orders.count, rule)
        assert "lower bound" in text and text.startswith("estimate") and "exact" not in text


def test_parameters_are_those_of_the_published_models():
    for width, depth, millions, entries in ((1024, 16, 641.36, 531), (1280, 20, 1237.35, 643)):
        config = MaskGenKLConfig(
            depth=depth,
            width=width,
            heads=16,
            hidden=4 * width,
            num_tokens=32,
            text_width=768,
            text_positions=77,
            score_width=256,
            aesthetic_score=6.5,
            channels=16,
            head_width=width,
            head_depth=8,
            scale_factor=0.7525,
        )
        with torch.device("meta"):
            made = MaskGenKL(config)
        assert sum(p.numel() for p in made.parameters()) == pytest.approx(millions * 1e6, abs=5e3)
        assert len(made.state_dict()) == entries
    assert config.pass_flops == pytest.approx(86e9, rel=0.06)

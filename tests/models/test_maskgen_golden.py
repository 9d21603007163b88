"""MaskGen VQ: parity with the reference implementation, brute force on tiny models, and captions."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill
from masked_models import given_then_hidden, mean_bound, scored, total_probability

from avarc_cli import families
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.models.masked.loss import masked_loss
from avarc_cli.models.maskgen import shapes
from avarc_cli.models.maskgen.benchmark import MaskGenWorkload
from avarc_cli.models.maskgen.config import MaskGenConfig
from avarc_cli.models.maskgen.family import VQ
from avarc_cli.models.maskgen.likelihood import MaskGenLikelihood
from avarc_cli.models.maskgen.network import MaskGen
from avarc_cli.models.maskgen.sampling import Schedule, sample
from avarc_cli.text.features import CaptionFeatures

SHORT = {"text_context_length": 9}  # positions of the captions of the golden file


def load(name="maskgen_vq_tiny"):
    meta, arrays = fill.load_golden(GOLDEN / f"{name}.npz")
    tensors = {k: torch.from_numpy(v) for k, v in fill.state_dict(meta["keys"], meta["seed"], meta["scales"]).items()}
    return meta, {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}, tensors


def stated(*values):
    return ConfigSources(tuple(("config.json", each) for each in values))


def network(precision="fp32"):
    meta, _, tensors = load()
    config = VQ.read_config(tensors, stated(SHORT, meta["config"]), "a file")
    made = MaskGen.from_state_dict(config, tensors, source="a file")
    return made.set_precision(precisions.find(precision, torch.device("cpu")))


def features(text, pooled, empty=None):
    return CaptionFeatures(
        captions=tuple(map(str, range(len(text)))),
        sequence_RTD=text,
        length_R=torch.full((len(text),), text.shape[1]),
        pooled_RE=pooled[:, 0],
        empty=empty,
    )


def golden_features(arrays):
    return features(arrays["text"], arrays["text_pooled"], features(arrays["null_text"], arrays["null_text_pooled"]))


@pytest.fixture(scope="module")
def golden():
    """(tolerance, arrays, network)."""
    meta, arrays, _ = load()
    return meta["tolerance"]["other_implementation"]["atol"], arrays, network()


def tiny(steps=2, captions=2, *, empty=True):
    """A model of 4 tokens of 3 codes with random captions."""
    generator = torch.Generator().manual_seed(0)
    config = MaskGenConfig(
        depth=2,
        width=8,
        heads=2,
        hidden=32,
        num_tokens=4,
        text_width=6,
        text_positions=5,
        score_width=4,
        aesthetic_score=6.5,
        vocab_size=3,
        rows=9,
    )
    made = MaskGen(config).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    text, pooled = torch.randn(3, 5, 6, generator=generator), torch.randn(3, 1, 6, generator=generator)
    of_none = features(text[2:], pooled[2:]) if empty else None
    return MaskGenLikelihood(made, steps).with_captions(features(text[:captions], pooled[:captions], of_none))


def error(ours, theirs):
    """The largest, as the files state it: absolute near 0, relative to large values."""
    return float(((ours.double() - theirs.double()).abs() / (1 + theirs.double().abs())).max())


@torch.inference_mode()
@pytest.mark.parametrize(("text", "outputs"), [("text", "logits"), ("null_text", "logits_null")])
def test_logits_of_every_position_are_the_references(golden, text, outputs):
    tolerance, arrays, model = golden
    sequence, pooled = (arrays[key].expand(3, -1, -1) for key in (text, f"{text}_pooled"))
    captions = model.captions(sequence, pooled[:, 0], arrays["aes_score"])
    ours = model.logits(captions, torch.arange(3), arrays["input_tokens"])
    assert error(ours, arrays[outputs]) <= tolerance
    assert error(model.score_embedding(arrays["aes_score"], 32), arrays["aes_embedding"]) <= tolerance


def test_the_loss_of_training_is_the_references(golden):
    tolerance, arrays, model = golden
    captions = model.captions(arrays["text"], arrays["text_pooled"][:, 0], arrays["aes_score"])
    logits = model.logits(captions, torch.arange(3), arrays["input_tokens"])
    hidden = arrays["input_tokens"] == model.config.mask
    loss = masked_loss(logits, arrays["target_tokens"], hidden, smoothing=0.1, visible=0.1).mean
    assert error(loss, arrays["mlm_loss"]) <= tolerance


def test_the_loss_and_gradients_of_the_first_step_of_training_are_the_references():
    meta, arrays, tensors = load("train_step_maskgen_vq_tiny")
    shape = {"decoder_num_heads": meta["config"]["heads"], "codebook_size": meta["config"]["vocab_size"]}
    config = VQ.read_config(tensors, stated(shape, SHORT), "a file")
    made = MaskGen.from_state_dict(config, tensors, source="a file").requires_grad_(True)
    first = {key: arrays[key][0] for key in ("tokens", "masks", "drop", "text", "text_pooled", "aes_score")}
    text, pooled = (
        torch.where(first["drop"][:, None, None], arrays[f"null_{key}"], first[key]) for key in ("text", "text_pooled")
    )
    captions = made.captions(text, pooled[:, 0], first["aes_score"])
    logits = made.logits(captions, torch.arange(4), first["tokens"].masked_fill(first["masks"], config.mask))
    loss = masked_loss(logits, first["tokens"], first["masks"], smoothing=0.1, visible=0.1).mean
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in made.parameters() if p.grad is not None]).norm()
    assert loss.item() == pytest.approx(arrays["loss"][0].item(), abs=1e-5)
    assert norm.item() == pytest.approx(arrays["grad_norm"][0].item(), rel=1e-4)


def test_sampling_follows_the_references_schedule(golden):
    _, arrays, made = golden
    model = MaskGenLikelihood(made).with_captions(golden_features(arrays))
    seen = []

    class Recorded:
        config = made.config

        def logits(self, captions, row_B, ids):
            seen.append(ids[: len(ids) // 2])
            return made.logits(captions, row_B, ids)

    generators = [torch.Generator().manual_seed(k) for k in range(3)]
    ours = sample(Recorded(), model.captions, torch.arange(3), 3, Schedule(6, 0.0, 3.0), generators, 3.0)
    assert torch.equal(torch.stack(seen), arrays["sample_trace"])
    assert torch.equal(ours, arrays["sample_tokens"])


@torch.inference_mode()
def test_captions_are_the_classes_and_the_empty_one_the_unconditional(golden):
    tolerance, arrays, made = golden
    model = MaskGenLikelihood(made, 1).with_captions(golden_features(arrays))
    assert (model.num_classes, model.unconditional, model.segment_ends) == (3, 3, (16,))
    tokens = arrays["target_tokens"]
    ours = scored(model, tokens, torch.arange(4), (1,))
    sequence, pooled = (torch.cat([arrays[f"{key}{end}"] for key in ("text", "null_text")]) for end in ("", "_pooled"))
    captions = made.captions(sequence, pooled[:, 0], torch.full((4,), 6.5))
    for b in range(3):
        logits = made.logits(captions, torch.arange(4), torch.full((4, 16), 128)).log_softmax(-1)
        assert error(ours[b], logits[:, torch.arange(16), tokens[b]]) <= tolerance


def test_a_caption_scores_the_same_whatever_the_others_are():
    alone, both = tiny(captions=1, empty=False), tiny(captions=2)
    tokens = torch.tensor([[2, 1, 0, 1]])
    assert alone.unconditional is None
    assert torch.equal(scored(alone, tokens, torch.tensor([0]), (2,)), scored(both, tokens, torch.tensor([0]), (2,)))
    assert both.resident_bytes > alone.resident_bytes > MaskGenLikelihood(both.transformer).resident_bytes


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_likelihood_of_any_number_of_passes_sums_to_one(steps):
    order = torch.tensor([2, 0, 3, 1])
    for unsmooth in (0.0, 0.1):
        total = total_probability(tiny().with_steps(steps, unsmooth=unsmooth), 3, torch.arange(3), order)
        assert torch.allclose(total, torch.ones(3, dtype=torch.float64), atol=1e-5)


@torch.inference_mode()
def test_the_mean_of_the_bound_over_all_masks_is_its_definition():
    model, tokens = tiny(steps=1), torch.tensor([[2, 1, 0, 1]])

    def by_hand(hidden):
        ids = tokens.clone()
        ids[0, list(hidden)] = 3
        rows = model.transformer.logits(model.captions, torch.tensor([1]), ids)[0].log_softmax(-1)
        return 4 / len(hidden) * sum(rows[p, tokens[0, p]].item() for p in hidden)

    def by_model(hidden):
        return scored(model, tokens, torch.tensor([1]), (1,), given_then_hidden(hidden, 4)).sum().item()

    bound = mean_bound(4, by_model)
    assert bound == pytest.approx(mean_bound(4, by_hand), abs=1e-5)
    chain = tiny(steps=4)
    orders = [torch.tensor(order) for order in itertools.permutations(range(4))]
    mean = np.mean([scored(chain, tokens, torch.tensor([1]), (4,), order).sum().item() for order in orders])
    assert bound == pytest.approx(mean, abs=1e-5)  # E over orders of the likelihood of one token a pass


def test_survivors_go_on_where_they_are():
    model, tokens, order = tiny(steps=4), torch.tensor([[2, 1, 0, 1]]), torch.tensor([[3, 1, 0, 2]])
    whole = scored(model, tokens, torch.arange(3), (4,), order[0])
    state = model.begin(tokens, torch.zeros(3, dtype=torch.int64), torch.arange(3), order)
    model.extend(state, 2, keep_cache_segments=2)
    kept = model.select(state, torch.tensor([2, 0]))
    assert torch.allclose(model.extend(kept, 4, keep_cache_segments=0), whole[0, [2, 0], 2:], atol=1e-6)


@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.3), ("int8", 0.6)])  # int8 without VNNI has 7 bits
def test_precisions_change_scores_by_their_rounding(golden, precision, most):
    _, arrays, made = golden
    exact, low = (
        MaskGenLikelihood(each, 4).with_captions(golden_features(arrays)) for each in (made, network(precision))
    )
    tokens = arrays["target_tokens"]
    difference = scored(low, tokens, torch.arange(4), (4,)) - scored(exact, tokens, torch.arange(4), (4,))
    assert 0 < difference.abs().max() < most


def test_the_aesthetic_score_is_the_same_for_all_captions(golden):
    _, arrays, made = golden
    tokens, given = arrays["target_tokens"], golden_features(arrays)
    default, stated_score, other = (
        scored(MaskGenLikelihood(made, 1).with_captions(given, aesthetic_score=score), tokens, torch.arange(3), (1,))
        for score in (None, 6.5, 4.0)
    )
    assert torch.equal(default, stated_score) and error(default, other) > 0.01
    with pytest.raises(UsageError, match="from 0 to 10"):
        MaskGenLikelihood(made).with_captions(given, aesthetic_score=11.0)


def test_what_a_model_of_captions_cannot_do_is_refused(golden):
    _, arrays, made = golden
    model = MaskGenLikelihood(made)
    with pytest.raises(UsageError, match="no captions yet"):
        scored(model, arrays["target_tokens"], torch.tensor([0]), (1,))
    with pytest.raises(UsageError, match="these captions have 8 positions"):
        model.with_captions(features(arrays["text"][:, :8], arrays["text_pooled"]))
    without_empty = model.with_captions(features(arrays["text"], arrays["text_pooled"]))
    with pytest.raises(UsageError, match="guidance needs the empty caption"):
        without_empty.sample(torch.tensor([0]), generators=[torch.Generator()])
    with pytest.raises(UsageError, match="16 tokens cannot be scored in 17 steps"):
        model.with_steps(17)


def test_an_image_does_not_depend_on_the_others_that_are_drawn_with_it():
    model = tiny()

    def draw(rows, seeds, guidance):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return model.sample(torch.tensor(rows), generators=generators, guidance=guidance)

    for guidance in (0.0, 12.0):
        together = draw([0, 1, 1], [5, 6, 7], guidance)
        assert torch.equal(together[1], draw([1], [6], guidance)[0]) and together.max() < 3


def test_the_published_files_are_recognized_by_their_tensors():
    meta, _, tensors = load()
    assert families.GENERATORS.recognize(tensors, None, "a file") is VQ
    config = VQ.read_config(tensors, stated(meta["config"]), "a file")
    assert (config.vocab_size, config.rows, config.num_tokens, config.heads) == (128, 140, 16, 4)
    assert config.text.positions == 77 and config.text.pooled_width == 48 and not config.inferred
    both = tensors | {"lm_head.weight": tensors["embeddings.weight"].clone()}
    assert MaskGen.from_state_dict(config, both, source="a file")
    both["lm_head.weight"] += 1
    with pytest.raises(CheckpointError, match="which a MaskGen has in its place"):
        MaskGen.from_state_dict(config, both, source="a file")


def test_what_no_file_states_is_as_in_the_published_models():
    _, _, tensors = load()
    config = VQ.read_config(tensors, stated({"condition_num_classes": 10}), "a file")
    assert (config.heads, config.vocab_size, config.aesthetic_score) == (16, 128, 6.5)
    assert set(config.inferred) == {"heads", "aesthetic score"}
    with pytest.raises(CheckpointError, match="the codes of a file are unknown"):
        VQ.read_config(tensors, ConfigSources(), "a file")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model": {"maskgen": {"decoder_depth": 6}}}, "decoder_depth is 6 there, and 3 in the tensors"),
        ({"model": {"maskgen": {"condition_num_classes": 9}}}, "condition_num_classes is 9 there, and 10"),
        ({"model": {"vq_model": {"num_latent_tokens": 32}}}, "num_latent_tokens is 32 there, and 16"),
        ({"decoder_num_heads": 5}, "its 64 channels do not divide among 5"),
        ({"sample_aesthetic_score": "good"}, "expected is a positive number"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(values, says):
    with pytest.raises(CheckpointError) as refused:
        VQ.read_config(load()[2], stated({"codebook_size": 128}, values), "a file")
    assert says in str(refused.value)


def test_a_model_without_a_score_is_given_none(golden):
    _, arrays, _ = golden
    _, _, tensors = load()
    tensors["cond_pooled_proj.weight"] = tensors["cond_pooled_proj.weight"][:, :48]
    config = VQ.read_config(tensors, stated(SHORT, {"codebook_size": 128, "decoder_num_heads": 4}), "a file")
    model = MaskGenLikelihood(MaskGen.from_state_dict(config, tensors, source="a file"), 1)
    assert model.with_captions(golden_features(arrays)).num_classes == 3
    with pytest.raises(UsageError, match="for models that are given one"):
        model.with_captions(golden_features(arrays), aesthetic_score=6.0)


def test_flops_and_parameters_are_those_of_the_published_models(monkeypatch):
    monkeypatch.setattr(torch.nn.init, "normal_", lambda tensor, *_: tensor)  # on no memory, it imports a compiler
    large = MaskGenConfig(
        depth=16,
        width=1024,
        heads=16,
        hidden=4096,
        num_tokens=128,
        text_width=768,
        text_positions=77,
        score_width=256,
        aesthetic_score=6.5,
        vocab_size=8192,
        rows=9194,
    )
    for config, millions in ((large, 604.31), (replace(large, width=1280, hidden=5120, depth=20), 1176.61)):
        with torch.device("meta"):
            made = MaskGen(config)
        assert sum(p.numel() for p in made.parameters()) == pytest.approx(millions * 1e6, abs=5e3)
    assert len(MaskGen(replace(large, depth=2, width=16, hidden=64)).state_dict()) + 14 * 28 == 450
    assert large.pass_flops == pytest.approx(82e9, rel=0.06)


def test_a_random_model_agrees_with_the_straightforward_implementation(golden):
    _, _, made = golden
    of_file = MaskGenWorkload(made, torch.device("cpu"))
    for workload in (VQ.random_workload("2:96:4:8", None, torch.device("cpu")), of_file):
        model, classes = workload.model("fp32", "torch"), torch.tensor([7, 0, 4])
        ours = scored(model, workload.tokens_L[None], classes, (model.steps,))[0]
        assert error(ours, workload.reference(classes)) < 1e-4
    for shape in ("m", "2:96:5:8", "2:96:4"):
        with pytest.raises(UsageError, match=f"no shape 'maskgen-{shape}'"):
            shapes.parse(shape)
    with pytest.raises(UsageError, match="have no grid"):
        shapes.parse("l", (16,))

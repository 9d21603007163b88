"""A VAR with added classes: the old ones score as before, the new ones as a model with merged weights would."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import read_var

from avarc_cli.added_classes import METHODS, ROW, AddedClass, AddedClassesModel, base_of, targets_of
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.layers.linears import plain_weights
from avarc_cli.layers.precision import PRECISIONS, cpu_has_bf16
from avarc_cli.loading import load_model
from avarc_cli.model_spec import ModelSpec
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.scoring.exhaustive import log_likelihoods
from avarc_cli.zoo import lora

CPU = torch.device("cpu")


def base_model(golden, precision="fp32"):
    return VARLikelihood(golden.var().set_precision(PRECISIONS[precision]), golden.vqvae().quantize)


def added(base, method, seed=0, rank=3):
    """An addition with noise in all of its parameters."""
    generator = torch.Generator().manual_seed(seed)
    new = AddedClass.new(base, seed % base.num_classes, method, rank=rank, generator=generator)
    for parameter in new.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return new.requires_grad_(False)


def scores(model, tokens, ids=None):
    return log_likelihoods(model, tokens, range(model.num_classes) if ids is None else ids, device=CPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("method", METHODS)
def test_old_classes_and_other_additions_score_bit_for_bit_as_before(golden, method, precision):
    base, tokens = base_model(golden, precision), golden.tokens().repeat(3, 1)
    alone = scores(base, tokens)
    one = scores(AddedClassesModel(base, [added(base, method)]), tokens)
    two = scores(AddedClassesModel(base, [added(base, method), added(base, "lora", seed=1)]), tokens)
    assert np.array_equal(one[:, :-1], alone) and np.array_equal(two[:, :-1], one)
    assert (np.abs(one[:, -1:] - alone) > 1e-3).all(), "and the new class is another one"


def test_a_bf16_model_is_neither_copied_nor_changed_by_additions(tiny):
    """A CPU with bfloat16 products has its weights packed, and a low-rank change needs them in rows and columns."""
    base = base_model(tiny, "bf16")
    before = base.resident_bytes
    model = AddedClassesModel(base, [added(base, "lora", seed) for seed in (0, 1)])
    own, *changed = ([block.attn.proj for block in each.network.blocks] for each in model.models)
    assert {layer.weight.is_mkldnn for layer in own} == {cpu_has_bf16()}
    assert {layer.own.is_mkldnn for layers in changed for layer in layers} == {cpu_has_bf16()}
    scores(model, tiny.tokens())
    assert base.resident_bytes == before, "on which batches depend"


@pytest.mark.parametrize("method", ["embedding", "lora"])
def test_an_int8_model_is_quantized_once_but_for_what_changes(tiny, method):
    model = AddedClassesModel(base_model(tiny, "int8"), [added(base_model(tiny), method)])
    own, new = (each.network.blocks[0].attn.proj for each in model.models)
    assert (new is own) == (method == "embedding")


@pytest.mark.parametrize("name", ["digits-llamagen", "digits-randar", "digits-titok"])
def test_a_class_is_added_to_other_families_in_bf16(name):
    base = base_of(load_model(ModelSpec(name, device="cpu", precision="bf16")).likelihood)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(16, (1, base.segment_ends[-1]), generator=generator)
    alone = scores(base, tokens)
    new = AddedClass.new(base, 3, "lora", rank=2, generator=generator).requires_grad_(False)
    found = scores(AddedClassesModel(base, [new]), tokens)
    assert np.array_equal(found[:, :-1], alone)
    assert np.abs(found[:, -1] - alone[:, 3]).max() < 1e-3 * np.abs(alone).max(), "its change begins as none"


def test_a_bf16_model_has_gradients_and_grows(tiny):
    base, tokens = base_model(tiny, "bf16"), tiny.tokens()
    alone = scores(base, tokens)
    new = added(base, "lora").requires_grad_()
    with plain_weights(base.network):
        assert not any(parameter.is_mkldnn for parameter in base.network.parameters())
        loss = -new.attach(base).token_log_prob(tokens, torch.zeros(len(tokens), dtype=torch.long)).mean()
        loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in new.parameters())
    assert np.array_equal(scores(base, tokens), alone)
    grown = base.with_more_classes(2)
    assert grown.num_classes == base.num_classes + 2
    assert np.abs(scores(grown, tokens, [0]) - scores(base_model(tiny), tokens, [0])).max() < 0.1
    assert not any(tensor.is_mkldnn for tensor in base.checkpoint_tensors().values())


@pytest.mark.parametrize("method", METHODS)
def test_an_addition_scores_as_the_base_with_its_weights_merged(golden, method):
    """Merged by the code that reads PEFT's files, so the names and shapes are PEFT's."""
    base, new = base_model(golden), added(base_model(golden), method)
    factors = {key.removeprefix("base_model.model."): t for key, t in new.tensors().items() if key != ROW}
    whole = {key: tensor.clone() for key, tensor in golden.tensors("var").items()}
    whole["class_emb.weight"][0] = new.tensors()[ROW]
    merged, said = lora.merge(whole | factors, {"lora_alpha": "3"}, golden.name)
    assert ("lora" in said) == (method != "embedding")
    expected = scores(VARLikelihood(read_var(merged), base.quantizer), golden.tokens(), [0])
    found = scores(AddedClassesModel(base, [new]), golden.tokens(), [base.num_classes])
    assert np.abs(found - expected).max() < 1e-4


def test_a_new_addition_scores_as_the_class_that_it_starts_from(golden):
    base = base_model(golden)
    new = AddedClass.new(base, 4, "lora", rank=2, generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    both = scores(AddedClassesModel(base, [new]), golden.tokens(), [4, base.num_classes])
    assert np.abs(both[:, 0] - both[:, 1]).max() < 1e-5


def test_stored_tensors_make_the_same_addition(golden):
    base = base_model(golden)
    for method in METHODS:
        new = added(base, method)
        again = AddedClass.from_tensors(base, new.tensors(), 1.0, "file").requires_grad_(False)
        found = [scores(AddedClassesModel(base, [a]), golden.tokens()) for a in (new, again)]
        assert np.array_equal(*found)


def test_tensors_that_do_not_fit_are_refused(tiny):
    base = base_model(tiny)
    tensors = added(base, "lora").tensors()
    name = next(key for key in tensors if key.endswith("lora_B.weight"))
    damaged = [
        {key: t for key, t in tensors.items() if key != ROW},
        tensors | {ROW: torch.zeros(3)},
        {key: t for key, t in tensors.items() if key != name},
        tensors | {name: tensors[name][:-1]},
        tensors | {"nonsense": torch.zeros(1)},
    ]
    for wrong in damaged:
        with pytest.raises(CheckpointError, match=r"a\.safetensors does not fit this model"):
            AddedClass.from_tensors(base, wrong, 1.0, "a.safetensors")


def test_unconditional_is_no_added_class_and_scores_as_before(tiny):
    base = base_model(tiny)
    model = AddedClassesModel(base, [added(base, "lora"), added(base, "embedding")])
    assert model.unconditional not in range(model.num_classes)
    assert np.array_equal(
        scores(model, tiny.tokens(), [model.unconditional]), scores(base, tiny.tokens(), [base.unconditional])
    )
    ids = np.array([0, base.num_classes - 1, base.num_classes, base.num_classes + 1, model.unconditional])
    assert model.adapter(ids).tolist() == [0, 0, 1, 2, 0]


def test_pairs_of_two_adapters_in_one_batch_are_an_error(tiny):
    base = base_model(tiny)
    model = AddedClassesModel(base, [added(base, "lora")])
    with pytest.raises(ValueError, match=r"adapters \[0, 1\]"):
        model.begin(tiny.tokens()[:1], torch.tensor([0, 0]), torch.tensor([0, base.num_classes]))


def test_extending_a_cached_prefix_gives_the_same_scores(tiny):
    base = base_model(tiny)
    model, new = AddedClassesModel(base, [added(base, "lora")]), base.num_classes
    tokens, last = tiny.tokens(), len(base.segment_ends)
    whole = model.extend(model.begin(tokens, torch.arange(2), torch.full((2,), new)), last, keep_cache_segments=0)
    state = model.begin(tokens, torch.arange(2), torch.full((2,), new))
    first = model.extend(state, 2, keep_cache_segments=2)
    rest = model.extend(model.join([model.select(state, torch.tensor([1])), state]), last, keep_cache_segments=0)
    rows = torch.tensor([1, 0, 1])
    assert torch.allclose(torch.cat([first[rows], rest], dim=1), whole[rows], atol=1e-5)


def test_an_added_class_is_sampled_by_its_own_model(tiny):
    base = base_model(tiny)
    model = AddedClassesModel(base, [added(base, "lora", seed=3)])

    def draw(likelihood, ids):
        streams = [torch.Generator().manual_seed(i) for i in range(len(ids))]
        return likelihood.sample(torch.tensor(ids), guidance=0.0, generators=streams)

    mixed = draw(model, [0, base.num_classes, 1])
    assert torch.equal(mixed[[0, 2]], draw(base, [0, 0, 1])[[0, 2]])
    assert torch.equal(mixed[1:2], draw(model.models[1], [0, 0])[1:2])


def test_guidance_applies_to_added_classes(tiny):
    """An addition that is still a copy of class 4 is drawn as class 4 is, guidance included."""
    base = base_model(tiny)
    generator = torch.Generator().manual_seed(0)
    copied = AddedClass.new(base, 4, "lora", rank=2, generator=generator).requires_grad_(False)
    model = AddedClassesModel(base, [copied])
    drawn = [
        model.sample(torch.tensor([class_id]), guidance=3.0, generators=[torch.Generator().manual_seed(1)])
        for class_id in (4, base.num_classes)
    ]
    assert torch.equal(*drawn)


def test_methods_change_what_they_say(golden):
    base = base_model(golden)
    assert targets_of(base, "embedding") == {}
    assert all("ada_lin" in name for name in targets_of(base, "adaln"))
    assert len(targets_of(base, "lora")) == 4 * base.config.depth
    shapes = {name: tuple(base.network.get_submodule(name).weight.shape) for name in targets_of(base, "lora")}
    assert shapes == targets_of(base, "lora")
    with pytest.raises(UsageError, match="no method 'nonsense'"):
        targets_of(base, "nonsense")
    with pytest.raises(UsageError, match="nor can classes be added"):
        base_of(SimpleNamespace(text=None))

"""TF32 is on while a tf32 model computes, and at no other time: not after loading, nor after an exception."""

import pytest
import torch

from avarc_cli.layers.precision import PRECISIONS, tf32
from avarc_cli.loading import ModelSpec, load_model, load_tokenizer
from avarc_cli.models.var import network
from avarc_cli.models.var.likelihood import VARLikelihood

BACKENDS = torch.backends.cuda.matmul, torch.backends.cudnn
PAIR = torch.zeros(1, dtype=torch.int64)


def flags():
    return tuple(backend.allow_tf32 for backend in BACKENDS)


@pytest.fixture(params=[(False, True), (True, False)], ids=["torch's defaults", "the opposite"], autouse=True)
def outside(request):
    """The flags that the process has; put back afterwards."""
    before = flags()
    for backend, value in zip(BACKENDS, request.param, strict=True):
        backend.allow_tf32 = value
    yield request.param
    for backend, value in zip(BACKENDS, before, strict=True):
        backend.allow_tf32 = value


@pytest.fixture
def seen(monkeypatch):
    """The flags at every call of attention."""
    calls, attend = [], network.block_causal_attention

    def recording(*args, **kwargs):
        calls.append(flags())
        return attend(*args, **kwargs)

    monkeypatch.setattr(network, "block_causal_attention", recording)
    return calls


def during(seen, function, *args, **kwargs):
    """The flags during a call, the same for every layer."""
    seen.clear()
    function(*args, **kwargs)
    (found,) = set(seen)
    return found


def test_two_models_in_turn_each_compute_in_their_own_precision(tiny, seen, outside):
    models = [VARLikelihood(tiny.var().set_precision(PRECISIONS[p]), tiny.vqvae().quantize) for p in ("tf32", "fp32")]
    expected = [(True, False), (False, False)]  # convolutions never use TF32
    states = [model.begin(tiny.tokens()[:1], PAIR, PAIR) for model in models]
    for stop in (1, 2, 4):
        for model, state, allowed in zip(models, states, expected, strict=True):
            assert during(seen, model.extend, state, stop, keep_cache_segments=stop) == allowed
            assert flags() == outside
    for model, state, allowed in zip(models, states, expected, strict=True):
        fork = model.fork(model.select(state, PAIR), PAIR, tiny.tokens()[:1], PAIR, stop=2)
        assert during(seen, model.extend, fork, 3, keep_cache_segments=0) == allowed
        assert during(seen, model.sample, PAIR, generators=[torch.Generator().manual_seed(0)]) == allowed
        assert flags() == outside


def test_the_quantizer_of_a_tf32_model_computes_without_tf32_convolutions(tiny, outside, monkeypatch):
    model, found = VARLikelihood(tiny.var().set_precision(PRECISIONS["tf32"]), tiny.vqvae().quantize), []
    teacher_input = model.quantizer.teacher_input
    monkeypatch.setattr(
        model.quantizer, "teacher_input", lambda tokens: (found.append(flags()), teacher_input(tokens))[1]
    )
    model.begin(tiny.tokens()[:1], PAIR, PAIR)
    assert found == [(True, False)] and flags() == outside


@pytest.mark.parametrize("precision", ["tf32", "fp32"])
def test_after_an_exception_the_flags_are_as_before(tiny, outside, precision):
    model = VARLikelihood(tiny.var().set_precision(PRECISIONS[precision]), tiny.vqvae().quantize)
    state = model.begin(tiny.tokens()[:1], PAIR, PAIR)
    with pytest.raises(ValueError, match="cannot extend"):
        model.extend(state, 0, keep_cache_segments=0)
    assert flags() == outside
    with pytest.raises(KeyError), tf32(True):
        raise KeyError
    assert flags() == outside


def test_loading_changes_no_flag(outside):
    for precision in ("fp32", "bf16", "int8"):
        load_model(ModelSpec("digits", device="cpu", precision=precision))
        assert flags() == outside
    load_tokenizer(ModelSpec("digits", device="cpu"))
    assert flags() == outside

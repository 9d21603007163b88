"""--kernels and --memory: what they choose, what they refuse, what run.json says."""

import pytest
import torch

from avarc_cli.devices import pick_kernels
from avarc_cli.errors import UsageError
from avarc_cli.loading import load_model
from avarc_cli.scoring.batching import auto_tokens
from avarc_cli.scoring.plan import parse_plan

CPU = torch.device("cpu")


def test_auto_is_torch_on_a_cpu_and_triton_is_refused_there(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert pick_kernels("auto", CPU) == pick_kernels("torch", CPU) == "torch"
    with pytest.raises(UsageError):
        pick_kernels("triton", CPU)
    with pytest.raises(UsageError):
        pick_kernels("cuda", CPU)


def test_less_memory_means_smaller_batches_and_too_little_is_refused():
    model = load_model("digits").likelihood
    plan = parse_plan("exhaustive", segments=len(model.segment_ends), candidates=10, samples=1)
    unlimited = auto_tokens(model, plan, CPU, fixed=True)
    base = (512 << 20) + model.resident_bytes
    assert auto_tokens(model, plan, CPU, fixed=True, memory=2**40) == unlimited
    assert auto_tokens(model, plan, CPU, fixed=True, memory=base + (16 << 20)) < unlimited
    with pytest.raises(UsageError) as refused:
        auto_tokens(model, plan, CPU, fixed=True, memory=2**20)
    assert "need" in refused.value.why

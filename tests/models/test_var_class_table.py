"""Class modulation is computed for the classes that are asked for, to bits that do not depend on the others."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avarc_cli.models.var.class_table import TOGETHER, ClassTable
from avarc_cli.models.var.config import VARConfig
from avarc_cli.models.var.network import VAR

CLASSES = 200


def network(shared: bool) -> VAR:
    torch.manual_seed(0)
    return VAR(
        VARConfig(
            depth=2,
            width=192,
            heads=3,
            num_classes=CLASSES,
            patch_nums=(1, 2),
            vocab_size=16,
            z_channels=4,
            shared_aln=shared,
        )
    ).requires_grad_(False)


@pytest.fixture(scope="module", params=[False, True], ids=["own", "shared"])
def var(request):
    return network(request.param)


@pytest.fixture(scope="module")
def of_all(var):
    table = ClassTable(var)
    table.prepare(torch.arange(CLASSES + 1))
    return table


def rows(table, ids):
    condition = table.of(torch.tensor(ids))
    return [part[condition.row_P] for part in (*condition.blocks, condition.head)]


@settings(max_examples=30, deadline=None)
@given(calls=st.lists(st.lists(st.integers(0, CLASSES), min_size=1, max_size=90), min_size=1, max_size=3))
def test_a_class_has_the_same_bits_whichever_others_are_asked_for(var, of_all, calls):
    table = ClassTable(var)
    for ids in calls:
        assert all(map(torch.equal, rows(table, ids), rows(of_all, ids)))
    assert table.tables is not None and len(table.tables.head) == len({number for ids in calls for number in ids})


def test_the_order_of_the_classes_does_not_matter(var, threads):
    asked = np.random.default_rng(threads).permutation(CLASSES + 1)[:70].tolist()
    forward, backward = ClassTable(var), ClassTable(var)
    backward.prepare(torch.tensor(asked[::-1]))
    assert all(map(torch.equal, rows(forward, asked), rows(backward, asked)))


def test_classes_of_the_same_place_are_computed_in_passes_of_their_own(var, of_all):
    asked = [5, 5 + TOGETHER, 5 + 2 * TOGETHER, CLASSES]
    assert all(map(torch.equal, rows(ClassTable(var), asked), rows(of_all, asked)))

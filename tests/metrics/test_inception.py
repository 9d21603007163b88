"""The Inception network, against torch-fidelity's."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from conftest import load_golden

from avarc_cli.errors import CheckpointError
from avarc_cli.metrics.inception import load, resize

CPU = torch.device("cpu")


@pytest.mark.parametrize("side", [16, 64])
def test_features_are_those_of_torch_fidelity(side, inception_file):
    golden = load_golden("inception_tiny")
    network = load(inception_file, CPU)
    pooled, spatial = network(golden.arrays[f"images_{side}"])
    found = {"pooled": pooled, "spatial": spatial, "logits": pooled @ network.output_weights}
    for name, values in found.items():
        assert np.abs(values - golden.arrays[f"{name}_{side}"]).max() <= golden.meta["tolerance"][name], name
    assert not network.is_published


def test_another_process_loads_the_same_network_unless_its_file_has_changed(inception_file, tmp_path):
    file = tmp_path / "weights.pth"
    file.symlink_to(inception_file)
    again = pickle.loads(pickle.dumps(load(file, CPU).loader()))
    pictures = load_golden("inception_tiny").arrays["images_16"][:1]
    assert np.array_equal(again("cpu")(pictures)[0], load(file, CPU)(pictures)[0])
    file.unlink()
    data = torch.load(inception_file)
    torch.save(data | {"fc.bias": data["fc.bias"] + 1}, file)
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        again("cpu")


def test_images_are_resized_as_tensorflow_1_did():
    """Pixel i of 299 lies at i * side / 299, between the pixels below and above; the last one has none above."""
    image = torch.rand(1, 2, 7, 7)
    found = resize(image)
    for row, column in ((0, 0), (100, 43), (298, 297)):
        y, x = row * 7 / 299, column * 7 / 299
        top, left = int(y), int(x)
        rows = image[0, :, [top, min(top + 1, 6)]]
        (a, b), (c, d) = (rows[:, i, [left, min(left + 1, 6)]].T for i in (0, 1))
        expected = (1 - y + top) * ((1 - x + left) * a + (x - left) * b) + (y - top) * (
            (1 - x + left) * c + (x - left) * d
        )
        assert torch.allclose(found[0, :, row, column], expected, atol=1e-5)


def test_other_weights_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(1000, 2048), "fc.extra": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not the Inception network"):
        load(tmp_path / "other.pth", CPU)

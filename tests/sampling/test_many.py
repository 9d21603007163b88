"""Many pictures of every included model: an array and a folder hold the same ones, interrupted or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avarc_cli.errors import Interrupted
from avarc_cli.loading import load_model
from avarc_cli.sampling import sample_many

CLASSES = {
    "digits-llamagen": ("8", "3"),
    "digits-randar": ("8", "3"),
    "digits-titok": ("8", "3"),
    "digits-captions": ("a handwritten eight", "a handwritten three"),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupt(done: int, _: int | None) -> None:
    if done:
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", CLASSES)
def test_an_array_and_a_folder_are_equal_also_after_an_interruption(name, tmp_path):
    classes = CLASSES[name]
    model = load_model(name, words=classes)
    for case in ("whole", "resumed"):
        (tmp_path / case).mkdir()
    for out in ("x.npz", "drawn"):
        with pytest.raises(Interrupted, match="1 of 2 pictures is kept"):
            sample_many(model, classes, tmp_path / "resumed" / out, 1, batch_size=1, progress=interrupt)
        for case in ("whole", "resumed"):
            sample_many(model, classes, tmp_path / case / out, 1, batch_size=1)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    array = np.load(tmp_path / "whole" / "x.npz")["arr_0"]
    files = [tmp_path / "whole" / "drawn" / each / "000.png" for each in classes]
    assert np.array_equal(array, [np.asarray(Image.open(file)) for file in files])
    assert array.std() > 10, "and they show something"

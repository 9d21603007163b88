from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stub_tokenizer import StubTokenizer, make_images

from avarc_cli.data import ImageSet


@pytest.fixture
def stub_tokenizer() -> type[StubTokenizer]:
    return StubTokenizer


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return make_images(tmp_path / "images", 11)


@pytest.fixture(scope="module")
def no_power_cut() -> Iterator[None]:
    """Files need not reach the disk to be read again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def labels() -> np.ndarray:
    """Of six images."""
    return np.array([3, 0, 7, 3, 3, 0])

from __future__ import annotations

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


@pytest.fixture
def labels() -> np.ndarray:
    """Of six images."""
    return np.array([3, 0, 7, 3, 3, 0])

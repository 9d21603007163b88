"""PSNR and SSIM, against scikit-image; how codes are used."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import load_golden

from avarc_cli.layout import TokenLayout
from avarc_cli.metrics.codes import Codes
from avarc_cli.metrics.similarity import psnr, ssim

GOLDEN = load_golden("similarity_tiny")


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_similarity_is_that_of_scikit_image(measure):
    name = measure.__name__
    found = measure(GOLDEN.arrays["image"], GOLDEN.arrays["other"])
    assert np.abs(found - GOLDEN.arrays[name]).max() <= GOLDEN.meta["tolerance"][name]


def test_equal_images_are_as_similar_as_images_can_be():
    image = GOLDEN.arrays["image"][:1]
    almost = image.copy()
    almost[0, 3, 4, 1] ^= 1
    assert ssim(image, image).tolist() == [1]
    assert psnr(image, image) == psnr(image, almost)


def test_images_smaller_than_the_window_have_no_ssim():
    small = np.zeros((1, 10, 10, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(small, small)


def test_use_of_codes_is_counted_grid_by_grid():
    codes = Codes(TokenLayout.multi_scale((1, 2)), vocab_size=8)
    codes.add(np.array([[5, 0, 0, 1, 1], [5, 2, 2, 3, 3]]))
    codes.add(np.array([[5, 0, 1, 2, 3]]))
    first, second, every = codes.usage()
    assert (first.where, first.tokens, first.used, first.entropy, first.perplexity) == ("1 x 1", 3, 1, 0, 1)
    assert (second.where, second.tokens, second.used) == ("2 x 2", 12, 4)
    assert second.entropy == pytest.approx(2) and second.perplexity == pytest.approx(4)
    share = np.array([3, 3, 3, 3, 3]) / 15
    assert (every.where, every.used) == ("all tokens", 5)
    assert every.entropy == pytest.approx(-(share * np.log2(share)).sum()) == pytest.approx(math.log2(5))


def test_a_sequence_has_one_line():
    codes = Codes(TokenLayout.sequence(3), vocab_size=4)
    codes.add(np.array([[0, 1, 1]]))
    (only,) = codes.usage()
    assert (only.where, only.tokens, only.used) == ("all tokens", 3, 2)

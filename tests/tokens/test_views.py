"""Views of some rows of a token cache."""

import numpy as np
import pytest

from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.loading import load_tokenizer
from avarc_cli.tokens import encode, read
from avarc_cli.zoo.local_files import ASSETS


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    images = open_images([ASSETS / "digits" / "test"]).select(None, None, 6)
    out, tokenizer = tmp_path_factory.mktemp("cache") / "t.h5", load_tokenizer("digits")
    return read(encode(images, tokenizer, Preprocess("fit", tokenizer.image_size), out, latents=True).path)


def test_a_view_has_its_rows_in_its_order(cache):
    view = cache.take([4, 1, 4])
    assert len(view) == 3 and view.paths == tuple(cache.paths[row] for row in (4, 1, 4))
    assert view.labels.tolist() == cache.labels[[4, 1, 4]].tolist()
    np.testing.assert_array_equal(view.tokens([2, 1]), cache.tokens([4, 1]))
    np.testing.assert_array_equal(view.latents([0, 1]), cache.latents([4, 1]))


def test_a_view_of_a_view_has_rows_of_the_cache(cache):
    view = cache.take([5, 3, 1]).take([2, 0])
    assert view.paths == (cache.paths[1], cache.paths[5])
    np.testing.assert_array_equal(view.tokens([0, 1]), cache.tokens([1, 5]))
    np.testing.assert_array_equal(view.first(1).tokens([0]), cache.tokens([1]))


def test_rows_out_of_range_are_refused(cache):
    for rows in ([6], [-1]):
        with pytest.raises(IndexError):
            cache.take(rows)
    with pytest.raises(IndexError):
        cache.take([0, 1]).tokens([2])


def test_blocks_are_not_read_from_views(cache):
    with pytest.raises(ValueError, match="view"):
        next(cache.take([0]).blocks())

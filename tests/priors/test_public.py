"""The pictures that a prior has learnt from, for the reference row that distils on them (docs/priors.md)."""

import numpy as np
import pytest

from dfkd.errors import UserError
from dfkd.priors import public_images

CARD = {"name": "noise4", "data": "noise"}


def test_they_are_the_pool_s_averaged_down(noise, arrays, tmp_path):
    images = public_images(CARD, 4, tmp_path / "data")
    assert images.shape == (20, 4, 4, 3) and images.dtype == np.uint8
    means = arrays.astype(float).reshape(20, 4, 2, 4, 2, 3).mean((2, 4))
    np.testing.assert_allclose(images, means, atol=0.5)
    assert np.array_equal(public_images(CARD, 8, tmp_path / "data"), arrays)


@pytest.mark.parametrize("card", [None, {"name": "somebody's", "data": None}])
def test_there_may_be_none(card, tmp_path):
    assert public_images(card, 4, tmp_path).shape == (0, 4, 4, 3)


@pytest.mark.parametrize("size", [3, 16])
def test_a_size_that_does_not_divide_theirs_is_refused(noise, size, tmp_path):
    with pytest.raises(UserError, match=f"the pictures of noise have 8 pixels, which {size} does not divide"):
        public_images(CARD, size, tmp_path / "data")

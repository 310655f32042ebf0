"""Reference rows: a tenth of the training set, and the public pictures of the prior (baselines.md 2.2)."""

import pytest
import torch

from baselines.reference import KDPublic, KDReal
from dfkd.engine.seeds import Streams
from tests.golden.test_fast import context


def with_images(count, seed="a"):
    """A context whose n-th real image has n everywhere, and the label n mod 3."""
    ctx = context()
    ctx.rng = Streams("cpu", seed)
    numbers = torch.arange(count)
    ctx.real = numbers.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous(), numbers % 3
    return ctx


def seen(ctx, method, draws):
    method.setup(ctx)
    batches = [method.draw(ctx) for _ in range(draws)]
    numbers = torch.cat([(batch.images[:, 0, 0, 0] * 255).round().long() for batch in batches])
    return numbers, [batch.labels for batch in batches]


@pytest.mark.parametrize(("share", "count"), [(1.0, 40), (0.1, 4), (0.5, 20), (0.001, 1)])
def test_a_share_of_the_training_set_is_all_that_is_seen(share, count):
    numbers, labels = seen(with_images(40), KDReal(share=share), 40)
    assert len(numbers.unique()) == count
    assert torch.equal(torch.cat(labels), numbers % 3), "each with its own label"


def test_the_share_is_another_one_for_each_seed_and_the_same_for_one():
    one, again, other = (seen(with_images(40, seed), KDReal(share=0.1), 20)[0].unique().tolist() for seed in "aab")
    assert one == again != other


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_no_other_share_is_taken(share):
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        KDReal(share=share)


def test_public_pictures_are_drawn_in_shuffled_passes_and_have_no_label():
    numbers, labels = seen(with_images(12), KDPublic(), 6)
    assert [sorted(numbers[i : i + 12].tolist()) for i in (0, 12)] == [list(range(12))] * 2
    assert labels == [None] * 6
    assert KDPublic.reference and KDPublic.prior == "public images"


def test_without_public_pictures_it_says_so():
    with pytest.raises(ValueError, match="no diffusion prior, or one whose training images are not at hand"):
        KDPublic().setup(with_images(0))

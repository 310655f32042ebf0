"""Batched crop and flip against the loop over images that it replaces."""

import pytest
import torch
import torch.nn.functional as F

from dfkd.synthesis.augment import Augment


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(count, channels=2, height=5, width=7, dtype=torch.float32):
    return torch.rand(count, channels, height, width, generator=rng(99), dtype=dtype) + 0.1


def crop(image, padding, top, left, flip):
    """One image C×H×W: zero padding, a crop of its own size at (top, left), then a flip."""
    _, height, width = image.shape
    image = F.pad(image, (padding,) * 4)[:, top : top + height, left : left + width]
    return image.flip(2) if flip else image


def explain(image, output, padding, flips=(False, True)):
    """The one (top, left, flip) that turns `image` into `output`; fails where there is none or several."""
    span = range(2 * padding + 1)
    found = [
        (top, left, flip)
        for top in span
        for left in span
        for flip in flips
        if torch.equal(crop(image, padding, top, left, flip), output)
    ]
    assert len(found) == 1, f"{len(found)} crops explain the output"
    return found[0]


def test_every_image_is_a_crop_and_flip_of_itself():
    images = random_images(64)
    outputs = Augment(2)(images, rng())
    draws = [explain(image, output, 2) for image, output in zip(images, outputs, strict=True)]
    assert len(set(draws)) > 20, "the draws are per image"


@pytest.mark.parametrize("padding", [1, 4])
def test_shifts_and_flips_are_uniform(padding):
    # One image of coordinates, many times: its corners and middle say what was drawn.
    count, size, span = 4000, 2 * padding + 3, 2 * padding + 1
    image = 1.0 + torch.arange(size * size, dtype=torch.float32).view(1, 1, size, size)
    outputs = Augment(padding)(image.expand(count, 1, size, size), rng())
    middle = (outputs[:, 0, size // 2, size // 2] - 1).long()
    flip = outputs[:, 0, size // 2, size // 2] > outputs[:, 0, size // 2, size // 2 + 1]
    assert set((middle // size).tolist()) == set((middle % size).tolist()) == set(range(1, size - 1))
    for draws, bins in ((middle // size, size), (middle % size, size), (flip.long(), 2)):
        counts = draws.bincount(minlength=bins).double()
        counts = counts[counts > 0]
        expected = count / (2 if bins == 2 else span)
        assert ((counts - expected) ** 2 / expected).sum() < 30  # 8 degrees of freedom: p < .001
    both = torch.stack([(middle // size).double(), (middle % size).double(), flip.double()])
    assert (torch.corrcoef(both) - torch.eye(3)).abs().max() < 0.06, "the three draws are independent"


def test_uint8():
    images = (random_images(16) * 200).to(torch.uint8)
    outputs = Augment(2)(images, rng())
    assert outputs.dtype == torch.uint8
    assert torch.equal(outputs.float(), Augment(2)(images.float(), rng()))


def test_channels_last_gives_the_same():
    images = random_images(16)
    outputs = Augment(2)(images.to(memory_format=torch.channels_last), rng())
    assert torch.equal(outputs, Augment(2)(images, rng()))


def test_no_padding_means_no_shift():
    images = random_images(64)
    outputs = Augment(0)(images, rng())
    flips = [explain(image, output, 0)[2] for image, output in zip(images, outputs, strict=True)]
    assert 0 < sum(flips) < 64
    assert torch.equal(Augment(0, flip=False)(images, rng()), images)


def test_no_flip_where_the_task_forbids_it():
    images = random_images(64)
    outputs = Augment(2, flip=False)(images, rng())
    for image, output in zip(images, outputs, strict=True):
        explain(image, output, 2, flips=(False,))


def test_draws_come_from_the_generator_alone():
    images, generator = random_images(32), rng(5)
    before = torch.get_rng_state()
    first, second = Augment(2)(images, generator), Augment(2)(images, generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, Augment(2)(images, rng(5)))
    assert not torch.equal(first, second)


def test_the_same_draws_with_and_without_flip():
    """Tasks with and without flips use up their stream alike."""
    one, two = rng(5), rng(5)
    Augment(2)(random_images(8), one)
    Augment(2, flip=False)(random_images(8), two)
    assert torch.equal(one.get_state(), two.get_state())


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_gradient_passes_gradcheck(padding, flip):
    images = random_images(4, channels=1, height=3, width=4, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: Augment(padding, flip)(x, rng(3)), (images,))


def test_gradient_is_that_of_the_loop():
    images = random_images(32).requires_grad_(True)
    weight = torch.randn(images.shape, generator=rng(1))
    outputs = Augment(2)(images, rng())
    outputs.backward(weight)
    again = images.detach().clone().requires_grad_(True)
    with torch.no_grad():
        draws = [explain(image, output, 2) for image, output in zip(images, outputs, strict=True)]
    torch.stack([crop(x, 2, *draw) for x, draw in zip(again, draws, strict=True)]).backward(weight)
    assert torch.equal(images.grad, again.grad)

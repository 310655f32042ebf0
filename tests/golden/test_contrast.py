"""CMI's contrastive term against float64 versions written out, its memory, its features and its local view."""

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfkd.networks import build
from dfkd.synthesis import contrast as module
from dfkd.synthesis.augment import ResizedCrop
from dfkd.synthesis.batchnorm import BatchNormLoss, channel_means
from dfkd.synthesis.contrast import Contrast, FeatureMemory, contrast


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(count, size, seed):
    return F.normalize(torch.randn(count, size, generator=rng(seed)), dim=1)


def plain(rows, columns, current, temperature):
    """The loss as dda.md 1.2 prints it, in float64, one row after the other."""
    rows, columns, losses = rows.double(), columns.double(), []
    for i in range(len(rows)):
        similar = rows[i] @ columns.T / temperature
        losses.append(torch.logsumexp(similar, 0) - similar[i])
    loss = sum(losses[:current]) / current
    return loss + sum(losses[current:]) / (len(rows) - current) if len(rows) > current else loss


# --- the loss


@pytest.mark.parametrize("block", [3, 4, 1024])  # of a matrix of 12 rows, evenly or not
@pytest.mark.parametrize("current, cached", [(5, 7), (11, 1), (1, 11), (12, 0)])
@pytest.mark.parametrize("temperature", [0.1, 0.2])
def test_the_loss_and_its_gradient_are_the_printed_ones(block, current, cached, temperature, monkeypatch):
    monkeypatch.setattr(module, "ROWS", block)
    rows, columns = unit(current + cached, 6, 1).requires_grad_(True), unit(current + cached, 6, 2)
    value = contrast(rows, columns, current, temperature)
    (3 * value).backward()
    twin = rows.detach().clone().requires_grad_(True)
    expected = plain(twin, columns, current, temperature)
    (3 * expected).backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(rows.grad.numpy(), twin.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_the_loss_by_hand():
    """Two current pairs at right angles, one cached pair that is like the first row and unlike its own column."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    columns = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    e = math.e
    first, second = math.log((e + 1 + 1 / e) / e), math.log((1 + e + 1) / e)
    third = math.log((e + 1 + 1 / e) * e)
    assert contrast(rows, columns, 2, 1.0).item() == pytest.approx((first + second) / 2 + third, rel=1e-6)


def test_no_gradient_reaches_the_columns():
    rows, columns = unit(4, 3, 1).requires_grad_(True), unit(4, 3, 2).requires_grad_(True)
    contrast(rows, columns, 2, 0.2).backward()
    assert columns.grad is None and rows.grad.abs().min() > 0


def test_the_loss_is_in_float32_under_autocast():
    rows, columns = unit(6, 4, 1), unit(6, 4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        value = contrast(rows.bfloat16(), columns.bfloat16(), 3, 0.1)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(plain(rows.bfloat16(), columns.bfloat16(), 3, 0.1).item(), rel=1e-5)


# --- the head and the memory around it


def project(head, features):
    return F.normalize(head[2](torch.relu(head[0](features))), dim=1)


@pytest.mark.parametrize("cached", [0, 9])
def test_head_and_local_features_learn_from_all_rows(cached):
    torch.manual_seed(0)
    loss = Contrast(size=5, capacity=16, negatives=16, temperature=0.2, lr=1e-3)
    assert [layer.weight.shape for layer in (loss.head[0], loss.head[2])] == [(5, 5), (256, 5)]
    memory = torch.randn(cached, 10, generator=rng(3))
    loss.memory.add(memory)
    local = torch.randn(4, 5, generator=rng(4), requires_grad=True)
    world = torch.randn(4, 5, generator=rng(5), requires_grad=True)
    value = loss.loss(local, world, rng(6))
    value.backward()
    found = [p.grad.clone() for p in loss.head.parameters()]

    # The same in float64 on copies, with the whole matrix; the order in which the memory is drawn does not matter.
    head = nn.Sequential(*loss.head).double()
    head.zero_grad()
    twin = local.detach().double().requires_grad_(True)
    rows = project(head, torch.cat([twin, memory[:, :5].double()]))
    with torch.no_grad():
        columns = project(head, torch.cat([world, memory[:, 5:]]).double())
    expected = plain(rows, columns, 4, 0.2)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(local.grad.numpy(), twin.grad.numpy(), rtol=1e-3, atol=1e-6)
    for gradient, parameter in zip(found, head.parameters(), strict=True):
        np.testing.assert_allclose(gradient.numpy(), parameter.grad.numpy(), rtol=1e-3, atol=1e-6)
    assert world.grad is None and not loss.memory.features.requires_grad


def test_each_step_draws_its_negatives_anew():
    torch.manual_seed(0)
    loss = Contrast(size=3, capacity=50, negatives=4, temperature=0.2, lr=1e-3)
    loss.memory.add(torch.randn(50, 6, generator=rng(1)))
    local, world, stream = torch.randn(2, 3, generator=rng(2)), torch.randn(2, 3, generator=rng(3)), rng(4)
    values = {loss.loss(local, world, stream).item() for _ in range(5)}
    assert len(values) == 5


def numbered(first, count):
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].repeat(1, 2)


def test_the_memory_is_a_ring():
    memory = FeatureMemory(5, 2)
    contents = []
    for first, count in ((0, 3), (3, 3), (6, 4), (10, 5), (15, 7)):  # not divisors of the capacity, and more than it
        memory.add(numbered(first, count))
        contents.append(sorted(memory.features[: memory.filled, 0].tolist()))
    assert contents == [[0, 1, 2], [1, 2, 3, 4, 5], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [17, 18, 19, 20, 21]]


def test_a_draw_from_the_memory_repeats_nothing_and_forgets_nothing():
    memory, stream = FeatureMemory(20, 2), rng()
    assert len(memory.draw(4, stream)) == 0
    memory.add(numbered(0, 10))
    seen = torch.zeros(10)
    for _ in range(500):
        rows = memory.draw(4, stream)[:, 0].long()
        assert len(set(rows.tolist())) == 4
        seen[rows] += 1
    assert ((seen - 200) ** 2 / 200).sum() < 28  # 9 degrees of freedom: p = .001
    assert sorted(memory.draw(4096, stream)[:, 0].tolist()) == list(range(10))


def test_the_saved_memory_goes_on_where_it_stood_and_holds_no_empty_slots():
    memory, again = FeatureMemory(1000, 2), FeatureMemory(1000, 2)
    memory.add(numbered(0, 7))
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    assert file.tell() < 1000 * 2 * 4
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    for each in (memory, again):
        each.add(numbered(7, 996))
    assert again.filled == memory.filled == 1000
    assert torch.equal(again.features, memory.features)


# --- features


def test_channel_means_are_those_of_the_layers_inputs():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    network.eval()
    images = torch.randn(5, 2, 4, 6, generator=rng(1), requires_grad=True)
    with channel_means([network[1], network[4]]) as means:
        network(images)
    assert not any(layer._forward_pre_hooks for layer in network)
    inputs = [network[0](images), network[3](network[2](network[1](network[0](images))))]
    for mean, values in zip(means, inputs, strict=True):
        assert mean.shape == values.shape[:2] and mean.requires_grad
        np.testing.assert_allclose(mean.detach().numpy(), values.detach().numpy().mean((2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "arch, kind, size",
    [("wrn40_2", "bn", 2704), ("wrn16_2", "bn", 912), ("vgg11", "bn", 2752), ("resnet34", "stages", 512)],
)
def test_the_length_of_a_feature_is_the_published_one(arch, kind, size):
    network = build(arch, 10).eval()
    stages = [network.get_submodule(name) for name in network.stages]
    with torch.no_grad(), channel_means(BatchNormLoss(network).layers if kind == "bn" else stages) as means:
        network(torch.zeros(1, 3, 32, 32))
    assert sum(mean.shape[1] for mean in means) == size


# --- the local view


def boxes(size, count, **options):
    """Left, top, width, height in pixels and flip of each crop, read off images of coordinates; and the crops."""
    ramp = torch.arange(size, dtype=torch.float32).expand(size, size)
    images = torch.stack([ramp, ramp.T]).expand(count, 2, size, size)
    crops = ResizedCrop(**options)(images, rng(7))
    # Corner pixels become corner pixels.
    first, last = crops[:, :, 0, 0], crops[:, :, -1, -1]
    (left, top), (right, bottom) = torch.minimum(first, last).T, torch.maximum(first, last).T
    return left, top, right - left + 1, bottom - top + 1, first[:, 0] > last[:, 0], crops


@pytest.mark.parametrize("size", [16, 32])
def test_the_crop_has_whole_pixels_the_asked_area_and_shape_and_lies_inside(size):
    left, top, width, height, flip, _ = boxes(size, 3000)
    for edge in (left, top, width, height):
        assert (edge - edge.round()).abs().max() < 1e-4
    area, ratio = width * height / size**2, width / height
    assert 0.22 < area.min() < 0.28 and area.max() == pytest.approx(1, abs=1e-4)  # rounding a side gives or takes some
    assert 0.66 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.5
    assert ratio.log().mean().item() == pytest.approx(0, abs=0.01)
    assert left.min() > -1e-3 and (left + width).max() < size + 1e-3
    assert top.min() > -1e-3 and (top + height).max() < size + 1e-3
    free = (width < 0.75 * size) & (height < 0.75 * size)  # crops that may lie here or there
    draws = torch.stack([left / (size - width), top / (size - height), flip.float()])[:, free]
    assert draws.mean(1).tolist() == pytest.approx([0.5, 0.5, 0.5], abs=0.05)
    assert (torch.corrcoef(draws) - torch.eye(3)).abs().max() < 0.08, "the three draws are independent"


def test_large_areas_are_rarer_as_in_the_program():
    """The program's quartiles of the enlarged area, from corner pixel to corner pixel, are quartiles here too."""
    _, _, width, height, _, _ = boxes(32, 20_000)
    area = (width - 1) * (height - 1) / 31**2
    shares = [(area < quartile).float().mean().item() for quartile in (0.395, 0.568, 0.730)]
    # There are no areas between those of whole pixels. Uniform areas would give .19, .42, .64.
    assert shares == pytest.approx([0.25, 0.5, 0.75], abs=0.03)


def test_the_crop_is_what_torchs_interpolation_makes_of_the_same_box():
    size, count = 16, 40
    left, top, width, height, flip, _ = boxes(size, count)
    images = torch.rand(count, 3, size, size, generator=rng(3))
    crops = ResizedCrop()(images, rng(7))
    assert 0 < flip.sum() < count
    for i in range(count):
        x, y, w, h = (int(edge[i].round()) for edge in (left, top, width, height))
        part = images[i : i + 1, :, y : y + h, x : x + w]
        expected = F.interpolate(part, (size, size), mode="bilinear", align_corners=True)
        np.testing.assert_allclose(crops[i], expected[0].flip(2) if flip[i] else expected[0], atol=1e-4)
    assert crops.is_contiguous(memory_format=torch.channels_last)


def test_the_whole_image_is_itself_and_no_flip_is_no_flip():
    images = torch.rand(8, 3, 8, 8, generator=rng(1))
    np.testing.assert_allclose(ResizedCrop(scale=(1.0, 1.0), flip=False)(images, rng()), images, atol=1e-6)
    assert not boxes(16, 200, flip=False)[4].any()


def test_the_gradient_of_a_crop_is_its_transpose():
    """⟨crop(x), g⟩ = ⟨x, crop*(g)⟩, the crop being linear."""
    images = torch.rand(6, 3, 8, 8, generator=rng(1), dtype=torch.float64).float().requires_grad_(True)
    weight = torch.randn(6, 3, 8, 8, generator=rng(2))
    product = (ResizedCrop()(images, rng(3)) * weight).sum()
    product.backward()
    assert product.item() == pytest.approx((images.detach() * images.grad).sum().item(), rel=1e-4)
    assert images.grad.abs().sum() > 0

"""Segmentation's numbers, worked out independently: focal loss, mIoU, crops, φ and δ per pixel, the colour map."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfkd import metrics
from dfkd.engine.evaluation import Batches
from dfkd.engine.samples import palette, with_predictions
from dfkd.synthesis import losses
from dfkd.synthesis.augment import CropAugment
from dfkd.synthesis.buffer import ReplayBuffer, Samples
from dfkd.tasks import IGNORE
from methods.ssdkd import SSDKD, _predicted

LOGITS = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
LABELS[0, :2] = IGNORE
LABELS[1, 3, 1] = IGNORE


def softmax():
    x = LOGITS.double().numpy()
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def by_hand(loss):
    """The mean of loss(p of the label) over the labelled pixels of each image, pixel by pixel."""
    means = []
    for p, labels in zip(softmax(), LABELS.numpy(), strict=True):
        pixels = [(i, j) for i in range(4) for j in range(5) if labels[i, j] != 255]
        means.append(np.mean([loss(p[labels[i, j], i, j]) for i, j in pixels]))
    return torch.tensor(means, dtype=torch.float32)


def test_cross_entropy_leaves_ignored_pixels_out():
    torch.testing.assert_close(losses.cross_entropy(LOGITS, LABELS), by_hand(lambda p: -np.log(p)))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_is_the_softmax_one(gamma):
    expected = by_hand(lambda p: -((1 - p) ** gamma) * np.log(p))
    torch.testing.assert_close(losses.focal(LOGITS, LABELS, gamma), expected)


def test_a_confident_pixel_counts_little_in_the_focal_loss():
    """p = 3/4: (1/4)² ln(4/3); p = 1/4: (3/4)² ln 4."""
    logits = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log().view(1, 2, 1, 2)
    labels = torch.zeros(1, 1, 2, dtype=torch.int64)
    expected = (0.0625 * 0.28768207 + 0.5625 * 1.38629436) / 2
    assert losses.focal(logits, labels).item() == pytest.approx(expected)


def test_an_image_without_labels_gives_no_loss_and_no_gradient():
    logits = LOGITS.clone().requires_grad_(True)
    value = losses.focal(logits, torch.full_like(LABELS, IGNORE))
    value.sum().backward()
    assert torch.equal(value, torch.zeros(2)) and not logits.grad.any()


def test_without_labels_the_argmax_takes_their_place():
    expected = -np.log(softmax().max(1)).mean((1, 2))
    torch.testing.assert_close(losses.cross_entropy(LOGITS, None), torch.tensor(expected).float())
    flat = LOGITS[:, :, 0, 0]
    torch.testing.assert_close(losses.cross_entropy(flat, None), losses.cross_entropy(flat, flat.argmax(1)))


def test_a_weight_stands_inside_the_mean_over_pixels():
    weight = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(2))
    expected = -(weight.numpy() * np.log(softmax().max(1))).mean((1, 2))
    torch.testing.assert_close(losses.cross_entropy(LOGITS, None, weight), torch.tensor(expected).float())
    student = LOGITS.flip(0)
    p, q = softmax(), softmax()[::-1]
    agree = p.argmax(1) == q.argmax(1)
    assert agree.any() and not agree.all()
    expected = -(weight.numpy() * agree * (p * np.log(p / q)).sum(1)).mean((1, 2))
    torch.testing.assert_close(losses.adversarial(LOGITS, student, weight), torch.tensor(expected).float())


def test_l1_between_logits():
    teacher, student = torch.zeros(2, 3, 1, 2), torch.arange(12.0).view(2, 3, 1, 2)
    assert losses.logits_l1(teacher, student).tolist() == [2.5, 8.5]
    assert losses.logits_l1(torch.zeros(1, 4), torch.tensor([[1.0, -2.0, 3.0, 0.0]])).tolist() == [1.5]


# --- mIoU


def confusion(predicted, labels, classes):
    matrix = np.zeros((classes, classes))
    for p, y in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if y != 255:
            matrix[y, p] += 1
    return matrix


def test_mean_iou_against_a_confusion_matrix_by_hand():
    generator = torch.Generator().manual_seed(3)
    # Class 3 is in the labels only, class 4 in the predictions only, class 5 nowhere.
    logits = torch.randn(6, 6, 4, 5, generator=generator)
    logits[:, 3], logits[:, 5] = -9, -9
    labels = torch.randint(0, 4, (6, 4, 5), generator=generator)
    labels[torch.rand(6, 4, 5, generator=generator) < 0.2] = IGNORE
    matrix = confusion(logits.argmax(1), labels, 6)
    ious = [matrix[c, c] / (matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]) for c in range(5)]
    assert ious[3] == ious[4] == 0 and matrix[5].sum() + matrix[:, 5].sum() == 0
    assert min(ious[:3]) > 0

    parts = (slice(0, 4), slice(4, 6))  # batches of unequal size: one matrix over the whole set
    matrix = sum(metrics.confusion(logits[part].argmax(1), labels[part], 6) for part in parts)
    value = metrics.metric("miou").of(matrix)
    assert value == pytest.approx(sum(ious) / 5)  # the absent class is left out, as DFAD does, and not counted as 0
    assert value != pytest.approx(sum(ious) / 6)
    perfect = F.one_hot(labels[:1].clamp_max(3), 6).movedim(3, 1).argmax(1)
    assert metrics.metric("miou").of(metrics.confusion(perfect, labels[:1], 6)) == 1


def test_two_pixels_by_hand():
    """Labels 0 0 1 1, predictions 0 1 1 1: IoU 1/2 and 2/3."""
    matrix = metrics.confusion(torch.tensor([[[0, 1, 1, 1, 0]]]), torch.tensor([[[0, 0, 1, 1, IGNORE]]]), 2)
    assert metrics.metric("miou").of(matrix) == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize(("sides", "count"), [((16, 16), 500), ((32, 32), 500), ((192, 256), 21), ((480, 640), 3)])
def test_large_images_are_evaluated_in_small_batches(sides, count):
    assert Batches(torch.empty(1, 3, *sides, device="meta"), torch.zeros(1), "meta").size == count


# --- crops of real images


def test_images_and_labels_are_cropped_and_flipped_alike():
    rows, columns = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
    images = torch.stack([rows, columns, rows * 0]).to(torch.uint8).repeat(64, 1, 1, 1)
    labels = (rows * 30 + columns).repeat(64, 1, 1)
    crops, maps = CropAugment(8, padding=4, flip=True).pair(images, labels, torch.Generator().manual_seed(0))
    assert crops.shape == (64, 3, 8, 8) and maps.shape == (64, 8, 8)
    assert torch.equal(crops[:, 0].long() * 30 + crops[:, 1], maps)
    steps = maps[:, 0, 1] - maps[:, 0, 0]
    assert set(steps.tolist()) == {1, -1}
    tops, lefts = crops[:, 0, 0, 0].tolist(), crops[:, 1].amin((1, 2)).tolist()
    assert set(tops) == set(range(13)) and min(lefts) == 0 and max(lefts) == 22


def test_an_image_of_the_crops_size_stays_and_flips_only_where_allowed():
    labels = torch.arange(16).view(1, 4, 4).repeat(8, 1, 1)
    images = labels[:, None].repeat(1, 3, 1, 1)
    crops, maps = CropAugment(4, padding=2, flip=False).pair(images, labels, torch.Generator())
    assert torch.equal(crops, images) and torch.equal(maps, labels)


# --- φ per pixel, δ per image (ssdkd.md 1.10)


def test_phi_is_per_pixel_with_shares_of_pixels():
    """A buffer of two images, of which class 0 has 3/4 and 1/4 of the pixels, so a share of 1/2 in all."""
    buffer = ReplayBuffer(4, (3, 2, 2))
    shares = torch.tensor([[0.75, 0.25, 0.0], [0.25, 0.25, 0.5]])
    buffer.add(Samples(torch.rand(2, 3, 2, 2), None, {"teacher_class": shares}))
    histogram = buffer.histogram("teacher_class", 3)
    assert histogram.tolist() == [1.0, 0.5, 0.5]
    # Two pixels: class 0 with p = .8, class 2 with p = .6.
    logits = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]).log().T.reshape(1, 3, 1, 2)
    phi = SSDKD(gamma=2.0, normalised=False).phi(logits, None, histogram / histogram.sum())
    expected = torch.tensor([[[(1 - 1 / 2) * 0.2**2, (1 - 0.5 / 2) * 0.4**2]]])
    torch.testing.assert_close(phi, expected)


def test_an_entry_counts_as_its_shares_of_pixels():
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1, 0, 0] = logits[0, 2, 0, 1] = logits[0, 2, 1, 0] = 1  # classes 1, 2, 2, 0
    assert _predicted(logits).tolist() == [[0.25, 0.25, 0.5]]
    assert _predicted(logits[:, :, 0, 1]).tolist() == [2]


def test_delta_is_the_mean_over_an_images_pixels():
    teacher, student = LOGITS, LOGITS.flip(0)
    p, q = softmax(), softmax()[::-1]
    expected = torch.tensor((p * np.log(p / q)).sum(1).mean((1, 2))).float()
    assert losses.kl(teacher, student).shape == (2,)
    torch.testing.assert_close(losses.kl(teacher, student), expected)


# --- grids


def test_the_palette_is_that_of_pascal_voc():
    expected = [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
        [64, 0, 0],
        [192, 0, 0],
        [64, 128, 0],
        [192, 128, 0],
        [64, 0, 128],
    ]
    assert palette(13).tolist() == expected


def test_each_image_stands_beside_both_predictions():
    """The teacher sees class 2 where a pixel is bright and class 0 elsewhere, the student class 1 everywhere."""

    class Net(nn.Module):
        def __init__(self, bias):
            super().__init__()
            self.bias = torch.tensor(bias).view(1, 3, 1, 1)

        def forward(self, images):
            return torch.cat([images[:, :1] * 0, images[:, :1] * 0, images[:, :1] - 0.5], 1) + self.bias

    images = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).expand(2, 3, 2, 2)
    tiles = with_predictions(images, 3, Net([0.0, -9.0, 0.0]), Net([0.0, 9.0, 0.0]))
    assert tiles.shape == (6, 3, 2, 2) and tiles.dtype == torch.uint8
    assert torch.equal(tiles[0], images[0]) and torch.equal(tiles[3], images[1])
    assert tiles[1].permute(1, 2, 0).tolist() == [[[0, 0, 0], [0, 128, 0]], [[0, 128, 0], [0, 0, 0]]]
    assert (tiles[2].permute(1, 2, 0) == torch.tensor([128, 0, 0])).all()

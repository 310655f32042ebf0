"""Metrics against values computed by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dfkd.errors import UserError
from dfkd.metrics import IGNORE, METRICS, confusion, metric

TRUTH = torch.tensor([[0, 0, 1, 2], [1, IGNORE, 1, 0]])
PREDICTED = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0]])


def test_a_confusion_matrix_by_hand():
    matrix = confusion(PREDICTED, TRUTH, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_matrices_of_batches_add_up():
    whole = confusion(PREDICTED, TRUTH, 4)
    parts = sum(confusion(p, t, 4) for p, t in zip(PREDICTED, TRUTH, strict=True))
    assert torch.equal(whole, parts)


def test_top1_by_hand():
    assert metric("top1").of(confusion(PREDICTED, TRUTH, 4)) == 100 * 4 / 7


def test_mean_iou_by_hand():
    # Class 0: 2 of 4; class 1: 2 of 5; class 2: 0 of 1; class 3 is absent and left out.
    assert metric("miou").of(confusion(PREDICTED, TRUTH, 4)) == pytest.approx((2 / 4 + 2 / 5 + 0) / 3, abs=1e-15)


def test_they_agree_with_torchmetrics():
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    random = torch.Generator().manual_seed(0)
    predicted = torch.randint(12, (4, 16, 16), generator=random)
    truth = torch.where(torch.rand(4, 16, 16, generator=random) < 0.1, IGNORE, predicted.flip(2) % 12)
    theirs = MulticlassJaccardIndex(13, average="macro", ignore_index=IGNORE)(predicted, truth).item()
    assert metric("miou").of(confusion(predicted, truth, 13)) == pytest.approx(theirs, abs=1e-6)
    theirs = MulticlassAccuracy(13, average="micro", ignore_index=IGNORE)(predicted, truth).item()
    assert metric("top1").of(confusion(predicted, truth, 13)) == pytest.approx(100 * theirs, abs=1e-4)


def test_scores_for_people():
    assert [metric("top1").text(x) for x in (92.618, None)] == ["92.62 %", "none"]
    assert metric("miou").text(0.4123) == "0.412"


def test_every_metric_is_whole_and_an_unknown_one_names_the_nearest():
    for name, found in METRICS.items():
        assert found.name == name and found.low < found.high
    with pytest.raises(UserError, match="nearest: 'miou'"):
        metric("mIoU")


def test_metrics_need_no_torch():
    code = "import sys, dfkd.metrics, dfkd.paths; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

"""Tiny models built from nothing, each in a folder: a pixel U-Net, a Stable Diffusion, an image-variation pipeline."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch

from dfkd import paths
from dfkd.artifacts import PRIOR
from dfkd.files import file_digest
from dfkd.priors import load, training, untrained
from dfkd.priors.folder import kind_of, side_of, weights_path
from dfkd.tasks import POOLS, InputSpec, Task, store


def pixel_unet(seed=0, classes=None, size=8):
    """(8, 16) channels; the last convolution is no longer the small one of a fresh network."""
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=size,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            num_class_embeds=classes,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )


def save_pixel(folder, unet, **schedule):
    """A folder as `save_pretrained` makes it, with Stable Diffusion's schedule unless told otherwise."""
    from diffusers import DDPMScheduler

    from dfkd.priors.pixel import SCHEDULE

    unet.save_pretrained(folder)
    DDPMScheduler(**SCHEDULE | {"clip_sample": False} | schedule).save_pretrained(folder / "scheduler")
    return folder


def card_for(folder, **facts):
    seen = {"kind": kind_of(folder), "size": side_of(folder), "digest": file_digest(weights_path(folder))}
    return PRIOR.new(folder.name, trained_on="noise", origin="foreign", **seen | facts)


@pytest.fixture
def pixel(tmp_path):
    """pixel(**how): a loaded PixelPrior of random weights."""

    def make(name="tiny", schedule=(), **how):
        folder = save_pixel(tmp_path / name, pixel_unet(**how), **dict(schedule))
        return load(folder, card_for(folder), "cpu", "fp32")

    return make


@pytest.fixture(scope="session")
def stable_diffusion_folder(tmp_path_factory):
    return untrained.save_text_to_image(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def variations_folder(tmp_path_factory):
    return untrained.save_image_variations(tmp_path_factory.mktemp("variations"))


@pytest.fixture
def images():
    """Four images of 8 x 8."""
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def generator():
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture
def arrays():
    """Twenty images of 8 x 8, as a pool has them."""
    return np.random.RandomState(0).randint(0, 256, (20, 8, 8, 3), np.uint8)


TINY = {
    "data": "noise",
    "size": 4,
    "channels": [8, 16],
    "layers": 1,
    "steps": 6,
    "batch": 4,
    "lr": 1e-3,
    "weight_decay": 1e-3,
    "warmup": 2,
    "decay": 0.5,
    "ema": 0.9,
}


@pytest.fixture
def noise(tmp_path, monkeypatch, arrays):
    """A pool of twenty 8 x 8 images in `tmp_path/data`, its recipe `noise4`, and a work folder of this test's own."""
    pool = Task("noise", InputSpec(8, 3, (0.5,) * 3, (0.5,) * 3, 1), ("a",), splits=("train",))
    monkeypatch.setitem(POOLS, "noise", pool)
    monkeypatch.setattr(paths, "WORK", tmp_path / "work")
    monkeypatch.setattr(paths, "prior_recipes", lambda: tmp_path / "priors.yaml")
    (tmp_path / "priors.yaml").write_text(json.dumps({"noise4": TINY}))
    store.write(tmp_path / "data", "noise", {"train": (arrays, np.zeros(20))}, ("a",), "images of nothing")
    return pool


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(step): the process gets a SIGINT during that step of a training; what it returns undoes that."""
    train_step = training.Denoising.train_step

    def at(step):
        def interrupted(self, data, optim_wrapper):
            if self.progress.student_steps == step - 1:
                os.kill(os.getpid(), signal.SIGINT)
            train_step(self, data, optim_wrapper)

        monkeypatch.setattr(training.Denoising, "train_step", interrupted)
        return lambda: monkeypatch.setattr(training.Denoising, "train_step", train_step)

    return at

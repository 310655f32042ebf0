"""A prior that has seen an image of the task, in any split, is refused."""

from dataclasses import replace

import numpy as np
import pytest

from dfkd.artifacts import PRIOR
from dfkd.artifacts.cards import ORIGINS
from dfkd.errors import UserError
from dfkd.priors import check_disjoint
from dfkd.priors.folder import write_digests
from dfkd.tables.definition import NO_PRIOR, table_of
from dfkd.tables.recipes import find
from dfkd.tables.resolve import takes_prior
from dfkd.tasks import InputSpec, Task, pool, store, task
from dfkd.tasks.store import data_root

TASK = Task("fake", InputSpec(8, 3, (0.5,) * 3, (0.5,) * 3, 2), ("a", "b"))


def card_of(name, origin="trained", **facts):
    return PRIOR.new(name, kind="pixel", trained_on="something", origin=origin, **facts)


@pytest.fixture
def check(tmp_path, arrays):
    """check(train, test, **card): against a prior that was trained on `arrays`."""
    write_digests(tmp_path / "p.images.npy", arrays)

    def run(train, test, **facts):
        splits = {name: (images, np.zeros(len(images))) for name, images in (("train", train), ("test", test))}
        store.write(tmp_path / "data", "fake", splits, ("a", "b"))
        card = card_of("p", images=dict(count=20, height=8, width=8)) | facts
        sized = replace(TASK, spec=replace(TASK.spec, size=train.shape[1]))
        check_disjoint(card, tmp_path / "p.images.npy", sized, tmp_path / "data")

    return run


def others(count=5, side=8):
    return np.random.RandomState(9).randint(0, 256, (count, side, side, 3), np.uint8)


def test_disjoint_images_pass(check):
    check(others(), others())
    check(others(), others(), images=None)


@pytest.mark.parametrize("split", ["train", "test"])
def test_three_shared_images_are_counted(check, arrays, split):
    splits = {"train": others(), "test": others()}
    splits[split] = np.concatenate([splits[split], arrays[[2, 7, 11]]])
    with pytest.raises(UserError, match=f"^3 images of the {split} split of fake were in the training set of prior p;"):
        check(**splits)


def test_a_changed_pixel_is_another_image(check, arrays):
    changed = arrays[:3].copy()
    changed[:, 0, 0, 0] ^= 1
    check(others(), changed)


def test_another_resolution_is_other_bytes(check):
    check(others(side=16), others(side=16))


def test_a_card_cannot_switch_the_comparison_off(check, arrays):
    for shape in ({"height": 9, "width": 9}, {"height": 8, "width": 8}):
        with pytest.raises(UserError, match=r"^20 images of the test split of fake"):
            check(others(), arrays, images={"count": 20, **shape})


def test_a_prior_of_the_task_itself_is_refused(tmp_path):
    card = card_of("p", origin="foreign", data="fake")
    with pytest.raises(UserError, match=r"^images of fake were the training set of prior p"):
        check_disjoint(card, None, TASK, tmp_path)


@pytest.mark.parametrize("origin", ORIGINS)
def test_without_digests_the_pool_of_the_card_is_compared(noise, tmp_path, arrays, origin):
    card = card_of("p", origin=origin, data="noise")
    store.write(tmp_path / "data", "fake", {"test": (arrays[3:5], np.zeros(2))}, ("a", "b"))
    with pytest.raises(UserError, match=r"^2 images of the test split of fake were in the training set of prior p"):
        check_disjoint(card, None, replace(TASK, splits=("test",)), tmp_path / "data")
    with pytest.raises(UserError, match=r"^prior p was trained on noise, .* make it with: python bench.py data noise"):
        check_disjoint(card, None, TASK, tmp_path / "nowhere")


@pytest.mark.parametrize("origin", ["trained", "adopted"])
def test_a_prior_of_ours_without_digests_is_refused(tmp_path, origin):
    card = card_of("p", origin=origin)
    with pytest.raises(UserError, match="the image digests of prior p are gone"):
        check_disjoint(card, None, TASK, tmp_path)


def test_nothing_known_is_nothing_compared(tmp_path):
    check_disjoint(card_of("sd", origin="foreign"), None, TASK, tmp_path)


def test_digests_that_are_none_are_named(tmp_path):
    card = card_of("p", origin="foreign")
    for content in (np.zeros(3), np.zeros((3, 3), np.uint64), None):
        if content is None:
            (tmp_path / "images.npy").write_bytes(b"")
        else:
            np.save(tmp_path / "images.npy", content)
        with pytest.raises(UserError, match=r"images\.npy holds no image digests"):
            check_disjoint(card, tmp_path / "images.npy", TASK, tmp_path)


def test_no_row_of_the_full_tiny_imagenet_takes_the_prior_that_has_seen_it():
    table = table_of("tiny_imagenet")
    cpu = table.protocol("cpu")
    assert cpu.settings["prior"] == NO_PRIOR
    assert not [name for name in cpu.recipes if takes_prior(find(table, name)[1])]


@pytest.mark.data
def test_the_prior_of_public_images_is_refused_for_their_task(tmp_path):
    """The full Tiny-ImageNet has them in its test split; here every tenth stands for it."""
    root, images = data_root(), pool("public_images")
    if images.problems(root):
        pytest.skip("public_images is not in DFKD_DATA")
    seen, labels = images.load("train", root)
    write_digests(tmp_path / "public32.images.npy", seen)
    spec = InputSpec(64, 3, (0.5,) * 3, (0.5,) * 3, 200)
    full, names = Task("tiny_imagenet", spec, (), splits=("test",)), [str(i) for i in range(200)]
    store.write(tmp_path, "tiny_imagenet", {"test": (seen[::10], labels[::10])}, names)
    card = card_of("public32")
    with pytest.raises(UserError, match=r"750 images of the test split of tiny_imagenet .* prior public32"):
        check_disjoint(card, tmp_path / "public32.images.npy", full, tmp_path)


@pytest.mark.data
def test_the_subset_of_tiny_imagenet_leaves_out_the_two_images_that_it_shares_with_the_pool():
    """The archive has them twice, in its training images and, under another class, in its validation images."""
    root, subset = data_root(), task("tiny_imagenet50")
    if any(data.problems(root) for data in (pool("public_images"), subset)):
        pytest.skip("public_images and tiny_imagenet50 are not in DFKD_DATA")
    card = card_of("public32", origin="foreign", data="public_images")
    check_disjoint(card, None, subset, root)
    assert len(subset.load("train", root)[0]) == 9998 and len(subset.load("test", root)[0]) == 2500
    with pytest.raises(UserError, match=r"^2 images of the train split of tiny_imagenet50"):
        check_disjoint(card, None, replace(subset, unused=()), root)

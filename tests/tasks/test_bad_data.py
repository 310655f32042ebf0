"""Stored data that are not what the store writes: refused in one line that names the file, and nothing hangs."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

import bench
from dfkd.documents import check
from dfkd.errors import UserError
from dfkd.paths import ROOT
from dfkd.tasks import store, task
from dfkd.tasks.store import SCHEMA


@pytest.fixture
def folder(tmp_path):
    """A CIFAR-10 of four images, as it should be."""
    store.write(tmp_path, "cifar10", {"test": split(4, 32, 32, 3)}, task("cifar10").class_names)
    task("cifar10").load("test", tmp_path)
    return tmp_path / "cifar10"


def split(*shape):
    return np.arange(np.prod(shape)).astype(np.uint8).reshape(shape), np.arange(shape[0]) % 10


def refused(folder, message, data="cifar10"):
    with pytest.raises(UserError, match=message) as caught:
        task(data).load("test", folder.parent)
    line = str(caught.value)
    assert len(line.splitlines()) == 1 and len(line) < 600
    assert str(folder) in line
    assert task(data).problems(folder.parent)


def replaced(make):
    """The file at a path, removed and made anew by `make`."""

    def do(path):
        path.unlink()
        make(path)

    return do


def header(text):
    """Writes an array file of nothing but a header."""
    return lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())


def shaped(shape):
    return header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}")


def fortran(path):
    np.save(path, np.asfortranarray(np.load(path)))


ARRAYS = {
    "a pipe": (replaced(os.mkfifo), "no regular file"),
    "a folder": (replaced(os.mkdir), "no regular file"),
    "a device": (replaced(lambda path: path.symlink_to("/dev/zero")), "no regular file"),
    "a link to itself": (replaced(lambda path: path.symlink_to(path)), "symbolic links"),
    "a dangling link": (replaced(lambda path: path.symlink_to("nowhere")), "is missing"),
    "pickled objects": (lambda path: np.save(path, np.array([{}], object)), "Python objects"),
    "an archive": (lambda path: np.savez(path.open("wb"), np.zeros(4)), "cannot be read"),
    "a page": (lambda path: path.write_text("<html>\nnot found"), "cannot be read"),
    "nothing": (lambda path: path.write_bytes(b""), "cannot be read"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot be read"),
    "a deep header": (header("(" * 5000), "cannot be read"),
    "a header that lies": (shaped(f"({10**18},)"), "cannot be read"),
    "a negative shape": (shaped("(-4,)"), "cannot be read"),
    "floats": (lambda path: np.save(path, np.load(path) / 255), r"uint8 \[4, 32, 32, 3\] expected, float64"),
    "another shape": (lambda path: np.save(path, np.load(path)[:3]), r"expected, uint8 \[3, 32, 32, 3\] found"),
    "another order": (fortran, "in Fortran's order found"),
    "other content": (lambda path: np.save(path, 255 - np.load(path)), "sha256 [0-9a-f]{64} expected"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_that_is_none(folder, case):
    spoil, message = ARRAYS[case]
    spoil(folder / "test_images.npy")
    refused(folder, rf"test_images\.npy .*{message}")


def manifest(**changes):
    """Writes the manifest with other values, a key with None left out; dots part the keys."""

    def do(path):
        content = json.loads(path.read_text())
        for key, value in changes.items():
            *places, last = key.split("__")
            inner = content
            for place in places:
                inner = inner[place]
            if value is None:
                del inner[last]
            else:
                inner[last] = value
        path.write_text(json.dumps(content))

    return do


def huge(path):
    with path.open("ab") as file:
        file.truncate(2**26)


MANIFESTS = {
    "broken": (lambda path: path.write_text("{"), "cannot be read"),
    "a list": (lambda path: path.write_text("[]"), "is not of type 'object'"),
    "empty": (lambda path: path.write_text("{}"), "required property"),
    "deep": (lambda path: path.write_text("[" * 50_000), "nested too deeply"),
    "huge": (huge, "more than 32 MiB"),
    "not UTF-8": (lambda path: path.write_bytes(b"\xff{}"), "not UTF-8"),
    "a pipe": (replaced(os.mkfifo), "no regular file"),
    "a folder": (replaced(os.mkdir), "no regular file"),
    "a link to itself": (replaced(lambda path: path.symlink_to(path)), "cannot be read"),
    "missing": (os.unlink, "is missing; make it with: python bench.py data cifar10"),
    "splits that are none": (manifest(splits=3), "splits: 3 is not of type 'object'"),
    "no splits": (manifest(splits={}), "splits: "),
    "another split": (manifest(splits={"train": {}}), "required property"),
    "no digest": (manifest(splits__test__labels_sha256=None), "'labels_sha256' is a required property"),
    "a digest that is none": (manifest(splits__test__images_sha256="0"), "splits.test.images_sha256"),
    "a shape that is none": (manifest(splits__test__images="4"), "splits.test.images"),
    "an empty set": (manifest(splits__test__images=[0, 32, 32, 3]), "less than the minimum of 1"),
    "a shape of another": (manifest(splits__test__images=[5, 32, 32, 3]), r"test_images\.npy is damaged: uint8 \[5,"),
    "another's name": (manifest(name="cifar100"), "is the manifest of 'cifar100'"),
    "classes that are none": (manifest(classes=[1]), "classes.0: 1 is not of type 'string'"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_is_none(folder, case):
    spoil, message = MANIFESTS[case]
    spoil(folder / "manifest.json")
    refused(folder, message)


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        ("cifar10", (4, 32, 32), r"uint8 \[N, height, width, 3\] expected for images, uint8 \[4, 32, 32\] found"),
        ("cifar10", (4, 32, 32, 1), r"expected for images, uint8 \[4, 32, 32, 1\] found"),
        ("cifar10", (4, 3, 32, 32), r"expected for images, uint8 \[4, 3, 32, 32\] found"),
        ("cifar10", (4, 28, 28, 3), "images of 28 x 28, 32 x 32 expected"),
        ("cifar10", (4, 32, 64, 3), "images of 64 x 32, 32 x 32 expected"),
        ("nyuv2", (4, 130, 130), r"expected for images, uint8 \[4, 130, 130\] found"),
        ("nyuv2", (4, 130, 130, 3), r"labels \[4\] for images"),
    ],
)
def test_images_that_no_network_of_the_task_takes(tmp_path, data, shape, message):
    store.write(tmp_path, data, {"test": split(*shape)}, task(data).class_names)
    refused(tmp_path / data, message, data)


def test_nothing_empty_is_stored(tmp_path):
    with pytest.raises(UserError, match="less than the minimum of 1"):
        store.write(tmp_path, "cifar10", {"test": split(0, 32, 32, 3)}, task("cifar10").class_names)
    assert list(tmp_path.iterdir()) == []


def test_what_lies_beside_the_arrays_is_nobodys_business(folder):
    shutil.copyfile(folder / "manifest.json", folder / "._manifest.json")
    (folder / "._test_images.npy").write_bytes(b"\x00\x05\x16\x07")
    assert len(task("cifar10").load("test", folder.parent)[0]) == 4


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/*/manifest.json")), ids=lambda path: path.parent.name)
def test_the_manifests_of_the_tables_satisfy_the_schema(path):
    check(json.loads(path.read_text(encoding="utf-8")), SCHEMA, path)


def test_a_home_that_there_is_not(monkeypatch):
    monkeypatch.setenv("DFKD_DATA", "~no-such-user-here/data")
    with pytest.raises(UserError, match="'~no-such-user-here/data' is no path"):
        store.data_root()
    monkeypatch.setenv("DFKD_DATA", "~/data")
    assert "~" not in str(store.data_root())
    assert "~" not in str(store.data_root("~/data"))


def made(make):
    """The name of what `make` puts into the test's folder."""

    def do(folder):
        make(folder / "there")
        return folder / "there"

    return do


@pytest.mark.parametrize(
    ("arguments", "place", "message"),
    [
        ("digits --manifest={}", made(os.mkdir), "is no file"),
        ("digits --manifest={}", made(os.mkfifo), "is no file"),
        ("digits --manifest={}", lambda folder: "/dev/null", "is no file"),
        ("digits --manifest={}/below", made(lambda path: path.touch()), "cannot write to"),
        ("digits --from={}", made(os.mkdir), "nothing to convert; leave out --from"),
        ("nyuv2 --from={}", lambda folder: folder / "nowhere", "there is no"),
        ("nyuv2 --from={}", made(lambda path: path.symlink_to(path)), "is no path: Too many levels of symbolic links"),
        ("nyuv2 --from={}", made(os.mkdir), "no pictures in a folder such as"),
        ("nyuv2 --from={}", made(os.mkfifo), "no pictures in a folder such as"),
        ("nyuv2 --from={}", made(lambda path: path.write_text("<html>")), "is no HDF5 file"),
        ("nyuv2 --from={}", lambda folder: "/dev/zero", "no pictures in a folder such as"),
    ],
)
def test_a_place_that_does_not_serve(tmp_path, capsys, arguments, place, message):
    place = place(tmp_path)
    arguments = [argument.format(place) for argument in arguments.split()]
    assert bench.main(["data", *arguments, f"--data-root={tmp_path / 'data'}"]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert message in line and str(place) in line and out == ""
    assert not (tmp_path / "data").exists()

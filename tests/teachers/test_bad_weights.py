"""Files that are no weights, weights that no network can have: each refused in one line that names file and key."""

import gzip
import io
import os
import tarfile
import zipfile
from collections import OrderedDict
from functools import partial

import pytest
import torch
from safetensors.torch import save, save_file

from dfkd import artifacts
from dfkd.artifacts import TEACHER
from dfkd.errors import UserError
from dfkd.files import file_digest
from dfkd.networks import initialise
from dfkd.tasks import task

SPEC = task("digits").spec
STATE = initialise("resnet8", SPEC, seed=1).state_dict()


def packed(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def archive(kind):
    file = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as made:
            made.addfile(tarfile.TarInfo("a"), io.BytesIO())
    else:
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("photo.txt", "hello")
    return file.getvalue()


def script():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file)
    return file.getvalue()


def changed(key, value, index=0):
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    state[key].view(-1)[index] = value
    return state


def itself():
    state = {}
    state["model"] = state
    return state


FILES = {
    "empty": (b"", "is no weights file but an empty file"),
    "a web page": (b"\n<!DOCTYPE html><html>Not found</html>", "but a web page"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "but a pointer of git-lfs"),
    "gzip": (gzip.compress(b"hello"), "but a gzip archive"),
    "tar": (partial(archive, "tar"), "but a tar archive of something else"),
    "zip": (partial(archive, "zip"), "but a zip archive of something else"),
    "TorchScript": (script, "but a TorchScript archive"),
    "text": (b"hello world" * 10, "cannot be read as weights"),
    "cut off": (lambda: save(STATE)[:-5], "cannot be read as weights"),
    "a cut-off checkpoint": (lambda: packed(STATE)[:-5000], "cannot be read as weights"),
    "a header without end": (b"\xff" * 7 + b"\x7f{" + b" " * 100, "cannot be read"),
    "a tensor": (lambda: packed(torch.zeros(3)), "no dictionary of tensors but Tensor"),
    "a list": (lambda: packed([torch.zeros(3)]), "no dictionary of tensors but list"),
    "in itself": (lambda: packed(itself()), "no dictionary of tensors but dict"),
    "nothing": (lambda: packed({}), "no key 'conv1.weight'; it is empty"),
    "integer keys": (lambda: packed({0: torch.zeros(3)}), "key 0 is no name; its 1 keys are 0"),
    "no tensors": (lambda: packed(STATE | {"conv1.weight": [1.0]}), "'conv1.weight' is no tensor but list"),
    "another network": (
        lambda: packed({f"encoder.{i}": torch.zeros(1) for i in range(9)}),
        "no key 'conv1.weight'; its 9 keys are 'encoder.0', 'encoder.1', 'encoder.2', …",
    ),
    "two of one name": (
        lambda: packed({**STATE, "module.fc.bias": STATE["fc.bias"]}),
        "'fc.bias' and 'module.fc.bias' are one key of the network, 'fc.bias'",
    ),
    "nan": (
        lambda: packed(changed("layer1.0.conv1.weight", torch.nan)),
        "'layer1.0.conv1.weight' holds nan or inf",
    ),
    "infinity": (lambda: save(changed("fc.bias", torch.inf)), "'fc.bias' holds nan or infinity"),
    "beyond float32": (
        lambda: packed(STATE | {"fc.bias": torch.full((10,), 1e300, dtype=torch.float64)}),
        "'fc.bias' holds nan or infinity",
    ),
    "a negative variance": (
        lambda: save(changed("bn1.running_var", -1e-3)),
        "'bn1.running_var' holds a variance below 0",
    ),
    "quantised": (
        lambda: packed(STATE | {"fc.bias": torch.zeros(10, dtype=torch.int8)}),
        "'fc.bias' has type torch.int8, not torch.float32",
    ),
    "complex": (
        lambda: packed(STATE | {"fc.bias": torch.zeros(10, dtype=torch.complex64)}),
        "'fc.bias' has type torch.complex64",
    ),
    "sparse": (
        lambda: packed(STATE | {"fc.bias": torch.zeros(10).to_sparse()}),
        "'fc.bias' is no plain tensor",
    ),
    "meta": (
        lambda: packed(STATE | {"fc.bias": torch.zeros(10, device="meta")}),
        "'fc.bias' is no plain tensor",
    ),
    "std 0": (
        lambda: save(STATE, {"std": "0.5 0 0.5"}),
        "its metadata are not an input specification: .* std",
    ),
    "std negative": (
        lambda: save(STATE, {"std": "0.5 0.5 -1"}),
        "its metadata are not an input specification: .* std",
    ),
    "std nan": (
        lambda: save(STATE, {"std": "nan 1 1"}),
        "its metadata are not an input specification: .* std",
    ),
    "mean nan": (
        lambda: save(STATE, {"mean": "nan 0 0"}),
        "its metadata are not an input specification: mean",
    ),
    "mean a word": (
        lambda: save(STATE, {"mean": "a b c"}),
        "its metadata are not an input specification: .*'a'",
    ),
    "mean of one": (
        lambda: save(STATE, {"mean": "0.5"}),
        "its metadata are not an input specification: .* 3 channels",
    ),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("case", FILES)
def test_a_file_that_will_not_do_is_named_in_one_line(case, suffix, tmp_path, recwarn):
    """The suffix says nothing: what a file is, its content tells."""
    content, message = FILES[case]
    path = tmp_path / f"theirs{suffix}"
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(UserError, match=message) as caught:
        artifacts.load_any(path, "resnet8", artifacts.spec_of(path, SPEC))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


def place(path, kind):
    if kind == "a folder":
        path.mkdir()
    elif kind == "a broken link":
        path.symlink_to(path.parent / "nowhere")
    elif kind == "no regular file":
        os.mkfifo(path)
    else:
        path.symlink_to(path)


@pytest.mark.parametrize("kind", ["a folder", "a broken link", "no regular file"])
def test_what_is_no_file_is_named_and_nothing_waits_for_it(kind, tmp_path):
    path = tmp_path / "digits_resnet8.safetensors"
    place(path, kind)
    asked = (
        lambda: TEACHER.find("digits_resnet8", [tmp_path]),
        lambda: artifacts.spec_of(path, SPEC),
        lambda: artifacts.load_any(path, "resnet8", SPEC),
        lambda: file_digest(path),
    )
    for ask in asked:
        with pytest.raises(UserError, match=f"{path.name} is {kind}"):
            ask()


def test_a_link_to_itself_is_named(tmp_path):
    path = tmp_path / "digits_resnet8.safetensors"
    place(path, "a circle")
    with pytest.raises(UserError, match=r"digits_resnet8\.safetensors"):
        TEACHER.find("digits_resnet8", [tmp_path])


def test_what_is_missing_is_named(tmp_path):
    for ask in (file_digest, lambda path: artifacts.load_any(path, "resnet8", SPEC)):
        with pytest.raises(UserError, match=r"theirs\.pth is missing"):
            ask(tmp_path / "theirs.pth")


def test_weights_of_either_kind_are_read_whatever_their_name(tmp_path):
    save_file(STATE, tmp_path / "theirs.pth", {"std": "1 2 3"})
    (tmp_path / "theirs.safetensors").write_bytes(packed(OrderedDict(STATE)))
    for name in ("theirs.pth", "theirs.safetensors"):
        loaded = artifacts.load_any(tmp_path / name, "resnet8", SPEC).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in STATE.items())
    assert artifacts.spec_of(tmp_path / "theirs.pth", SPEC).std == (1.0, 2.0, 3.0)


def test_an_encoder_is_looked_at_as_closely(tmp_path):
    from dfkd.artifacts.weights import load_encoder
    from dfkd.networks import build

    network = build("deeplabv3plus_mobilenetv2", 11)
    state = network.encoder.state_dict()
    key = next(name for name in state if name.endswith("running_var"))
    save_file({**state, key: state[key] - 2}, tmp_path / "some.safetensors")
    with pytest.raises(UserError, match=f"some.safetensors does not fit the encoder: '{key}' holds a variance"):
        load_encoder(network, "some", [tmp_path])


@pytest.mark.parametrize(("given", "message"), [("file", "is no folder"), ("nowhere", "there is no weights folder")])
def test_a_weights_folder_that_is_none(given, message, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DFKD_WEIGHTS", str(tmp_path / given))
    for option in (None, tmp_path / given):
        with pytest.raises(UserError, match=message):
            artifacts.given_folders(option)


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for option in ("~", None):
        monkeypatch.setenv("DFKD_WEIGHTS", "~")
        assert artifacts.given_folders(option) == [tmp_path]
    with pytest.raises(UserError, match="~nobody-here"):
        artifacts.given_folders("~nobody-here/weights")

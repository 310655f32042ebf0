"""Reading and writing weights: our own, those of `DFKD_WEIGHTS`, and anybody's checkpoint."""

from __future__ import annotations

import hashlib
import json
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfkd.errors import UserError
from dfkd.files import copy_file, replace_file
from dfkd.networks import build
from dfkd.tasks import InputSpec, task
from dfkd.teachers.cards import (
    card_of,
    card_path,
    file_digest,
    new_card,
    read_card,
    there,
    weights_name,
    write_card,
)

if TYPE_CHECKING:
    from torch import nn

# Public checkpoints known by the sha256 of their safetensors file; a name alone would prove nothing.
ADDRESSES = {
    digest: address
    for address, digests in {
        "https://github.com/chenyaofo/pytorch-cifar-models": (
            "2f978aaeac04ede6ae30c3f3db63a014a3f22fb45084c4b07ba06ae7b578c35e",  # cifar10_resnet20
            "b9482028c37b20b1bfba0d9fe55b7f40c029161dc02e11892e1e2ad4f02ef73f",  # cifar10_resnet56
            "8c447a4ab4ee53726a16699d04b32bad12634460d235e0f4acdc9d0d9d232d12",  # cifar100_resnet20
            "d63a829c0f9cf63f6ed65a473c71d60be1c89de38d2de8fc95f5d6edd3d93b33",  # cifar100_resnet56
        ),
        "https://github.com/karanchahal/distiller": (
            "5f4fd58af49f2b060d40822613c0228c7662badd4204b360f2260e7ec58a8425",  # cifar10_wrn16_1
            "44bf0c21b887b4c7c9e9d3a58b5d32317c336702934a5338ae8b04a24313dc21",  # cifar10_wrn28_1
        ),
    }.items()
    for digest in digests
}


def spec_of(weights: Path, spec: InputSpec) -> InputSpec:
    """`spec` with the `mean` and `std` of the weights file's metadata, where it has them."""
    from safetensors import SafetensorError, safe_open

    if not _is_safetensors(weights):
        return spec
    try:
        with safe_open(weights, "numpy") as file:
            constants = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights} cannot be read as weights ({error})") from None
    own = {key: constants[key].split() for key in ("mean", "std") if key in constants}
    try:
        return InputSpec.from_dict({**spec.to_dict(), **own})
    except UserError as error:
        raise UserError(f"{weights}: its metadata are {error}") from None


def save(network: nn.Module, path: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write a bare network (not `Normalised`) and its card atomically; returns the card with its digest."""
    from safetensors.torch import save as pack

    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    metadata = {key: " ".join(map(str, card["spec"][key])) for key in ("mean", "std")}
    content = _in_order(pack(state, metadata))
    card = write_card(path, card, hashlib.sha256(content).hexdigest())
    replace_file(path, content)
    return card


def _in_order(packed: bytes) -> bytes:
    """The same file with its metadata sorted: safetensors writes them in random order, and equal networks must
    have equal digests."""
    size = int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + packed[8 + size :]


def load(path: Path, arch: str, spec: InputSpec) -> nn.Module:
    """The bare network of a weights file, in eval mode.

    Raises UserError where the file is missing, differs from the digest on its card (if it has one), or does
    not fit, naming the first mismatching key.
    """
    if card_path(path).is_file():
        check_digest(path, read_card(path))
    return load_foreign(path, arch, spec)


def check_digest(path: Path, card: Mapping[str, Any]) -> None:
    """Raise UserError where a weights file is not the one of its card."""
    expected, found = card["digest"], file_digest(path)
    if found != expected:
        raise UserError(
            f"{path} is damaged, or its card is another's: sha256 {expected} expected, {found} found; "
            "remove it to have it made anew"
        )


def load_foreign(path: Path, arch: str, spec: InputSpec) -> nn.Module:
    """As `load`, for anybody's safetensors file or PyTorch checkpoint, without a card. An unsafe pickle is refused."""
    network = build(arch, spec.classes, spec.size)
    _fill(network, path, _read_state(path), f"{arch} with {spec.classes} classes")
    return network.eval()


def _fill(network: nn.Module, path: Path, state: Any, what: str, head: str | None = None) -> None:
    from dfkd.networks.keys import adapt

    try:
        network.load_state_dict(adapt(state, network, head))
    except UserError as error:
        raise UserError(f"{path} does not fit {what}: {error}") from None


def _read_state(path: Path) -> Any:
    import pickle

    import torch
    from safetensors.torch import load_file

    path = Path(path)
    ours = _is_safetensors(path)
    try:
        if ours:
            return load_file(path)
        # Opened here, for torch goes by the name; and warnings would say once more what is said below.
        with open(path, "rb") as file, warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if what := _what_else(path):
            raise UserError(f"{path} is no weights file but {what}") from None
        if isinstance(error, pickle.UnpicklingError) and _head(path).startswith((b"PK", b"\x80")):
            raise UserError(
                f"{path} is refused: a pickle with more than tensors and plain containers could run code; "
                "save its state_dict() alone, or convert it to safetensors"
            ) from None
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path} cannot be read as weights ({reason})") from None


def _is_safetensors(path: Path) -> bool:
    """Whether a file looks like one, whatever its name: the length of a header, and the header. UserError for none."""
    if not there(Path(path)):
        raise UserError(f"{path} is missing")
    return _head(path)[8:9] == b"{"


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(256)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def _what_else(path: Path) -> str | None:
    """What a file is that cannot be read as weights, where that can be seen."""
    head = _head(path)
    for start, what in {
        b"version https://git-lfs": "a pointer of git-lfs: fetch the file itself (git lfs pull)",
        b"\x1f\x8b": "a gzip archive: unpack it",
        b"\x89HDF": "an HDF5 file: convert it to safetensors",
    }.items():
        if head.startswith(start):
            return what
    if not head:
        return "an empty file"
    if head.lstrip().startswith(b"<"):
        return "a web page: the download went wrong"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = {name.rpartition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in parts:
            return "a TorchScript archive: save the state_dict() of the loaded module"
        return None if "data.pkl" in parts else "a zip archive of something else"
    return "a tar archive of something else" if tarfile.is_tarfile(path) else None


def load_encoder(network: nn.Module, name: str, folders: Iterable[Path], sha256: str | None = None) -> Path:
    """Start a network from `<name>.safetensors` in one of `folders`; returns that file.

    Of a segmentation network that is the encoder, and the file has torchvision's keys (a classifier in it is left out);
    of a classifier everything but its last layer. Raises UserError where the file is missing, does not fit, or has not
    this `sha256`.
    """
    from dfkd.networks.keys import efficientnet_lite0, mobilenetv2_encoder

    path = next((path for path in (folder / f"{name}.safetensors" for folder in folders) if there(path)), None)
    if path is None:
        raise UserError(
            f"the teacher starts from {name}.safetensors, which is in no weights folder (DFKD_WEIGHTS); "
            "see the README of its table"
        )
    if sha256 not in (None, found := file_digest(path)):
        raise UserError(f"{path} is not the file that the teacher starts from: sha256 {sha256} expected, {found} found")
    state = _read_state(path)
    if hasattr(network, "encoder"):
        state = {k: v for k, v in state.items() if not k.startswith(("classifier.", "fc."))}
        _fill(network.encoder, path, mobilenetv2_encoder(state), "the encoder")
    else:
        head = next(name for name, module in network.named_modules() if module is network.fc)
        _fill(network, path, efficientnet_lite0(state), "the network", head)
    return path


def adopt(
    data: str,
    arch: str,
    source: Path,
    own: Path,
    measure: Callable[[nn.Module], float] | None = None,
    data_digest: str | None = None,
) -> Path:
    """Copy the teacher `<data>_<arch>` from folder `source` to `own`, with a card; returns its new path.

    `measure` takes the network (images in [0, 1] in, logits out) and returns its test accuracy in percent.
    The file must fit the network before anything is written. Raises UserError as `load` does.
    """
    from dfkd.networks.normalised import Normalised

    given = Path(source) / weights_name(data, arch)
    if card_path(given).is_file():
        card_of(given, data, arch)
    spec = spec_of(given, task(data).spec)
    network = Normalised(load(given, arch, spec), spec).eval()
    accuracy = measure(network) if measure else None
    path, digest = Path(own) / given.name, file_digest(given)
    facts = {"accuracy": accuracy, "address": ADDRESSES.get(digest), "data_digest": data_digest}
    write_card(path, new_card(data, arch, spec, "adopted", **facts), digest)
    copy_file(given, path)
    return path

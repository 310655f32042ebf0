"""Reading and writing weights: our own, those of `DFKD_WEIGHTS`, and anybody's checkpoint."""

from __future__ import annotations

import hashlib
import json
import tarfile
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfkd.artifacts.cards import TEACHER
from dfkd.errors import UserError, reason
from dfkd.files import check_digest, file_digest, file_there, replace_file
from dfkd.networks import build
from dfkd.tasks import InputSpec

if TYPE_CHECKING:
    from torch import nn


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
    card = {**card, "digest": hashlib.sha256(content).hexdigest()}
    TEACHER.write(path, card)
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
    if TEACHER.card_path(path).is_file():
        check_digest(path, TEACHER.read(path)["digest"])
    return load_any(path, arch, spec)


def load_any(path: Path, arch: str, spec: InputSpec) -> nn.Module:
    """As `load`, for anybody's safetensors file or PyTorch checkpoint, without a card. An unsafe pickle is refused."""
    network = build(arch, spec.classes, spec.size)
    _fill(network, path, _read_state(path), f"{arch} with {spec.classes} classes")
    return network.eval()


def _fill(network: nn.Module, path: Path, state: Any, what: str, *head: Any) -> None:
    """`head` as `adapt` takes it."""
    from dfkd.networks.keys import adapt

    try:
        network.load_state_dict(adapt(state, network, *head))
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
        raise UserError(f"{path} cannot be read as weights ({type(error).__name__}: {reason(error)})") from None


def _is_safetensors(path: Path) -> bool:
    """Whether a file looks like one, whatever its name: the length of a header, and the header. UserError for none."""
    if not file_there(Path(path)):
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


def load_encoder(
    network: nn.Module, name: str, folders: Iterable[Path], sha256: str | None = None, rows: Sequence[int] = ()
) -> Path:
    """Start a network from `<name>.safetensors` in one of `folders`; returns that file.

    Of a segmentation network that is the encoder, and the file has torchvision's keys (a classifier in it is left out);
    of a classifier everything but its last layer, which gets these `rows` of the file's. Raises UserError where the
    file is missing, does not fit, or has not this `sha256`.
    """
    from dfkd.networks.keys import efficientnet_lite0, mobilenetv2_encoder

    path = TEACHER.find(name, folders)
    if path is None:
        raise UserError(
            f"the teacher starts from {name}.safetensors, which is in no weights folder (DFKD_WEIGHTS); "
            "see the README of its table"
        )
    if sha256 not in (None, found := file_digest(path)):
        raise UserError(f"{path} is not the file that the teacher starts from: sha256 {sha256} expected, {found} found")
    state = _read_state(path)
    if hasattr(network, "encoder"):
        if rows:
            raise UserError("encoder_classes are rows of a classifier's last layer; a segmentation network has none")
        state = {k: v for k, v in state.items() if not k.startswith(("classifier.", "fc."))}
        _fill(network.get_submodule("encoder"), path, mobilenetv2_encoder(state), "the encoder")
    else:
        head = next(name for name, module in network.named_modules() if module is network.fc)
        _fill(network, path, efficientnet_lite0(state), "the network", head, rows)
    return path

"""Messages between harness and worker: a kind, plain values as JSON, tensors as safetensors bytes. Nothing is pickled.

Each message is three lengths, then that many bytes of kind, JSON and tensors. What the other side sends is bounded
and checked; whatever is wrong with it is the other side's error, told in one line.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_LENGTHS = struct.Struct("<HIQ")
LONGEST_KIND, LARGEST_VALUES, LARGEST_TENSORS = 32, 2**24, 2**34


class Broken(Exception):
    """The other side sent what is no message."""


class Closed(Broken):
    """The other side is gone."""


class Channel:
    """Whole messages over two byte streams."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def send(
        self, kind: str, values: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        """Send one message. Raises Closed."""
        name, text = kind.encode(), json.dumps(values or {}).encode()
        body = packed(tensors) if tensors else b""
        try:
            self._outgoing.write(_LENGTHS.pack(len(name), len(text), len(body)) + name + text)
            self._outgoing.write(body)
            self._outgoing.flush()
        except (OSError, ValueError):
            raise Closed("the other side is gone") from None

    def receive(self) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
        """The next message. Raises Closed, or Broken for what is none."""
        of_kind, of_values, of_tensors = _LENGTHS.unpack(self._read(_LENGTHS.size))
        if of_kind > LONGEST_KIND or of_values > LARGEST_VALUES or of_tensors > LARGEST_TENSORS:
            raise Broken(f"a message of {of_kind + of_values + of_tensors} bytes is too long")
        kind, text, body = (self._read(length) for length in (of_kind, of_values, of_tensors))
        try:
            values = json.loads(text, parse_constant=_refuse)
            if not isinstance(values, dict):
                raise ValueError("its values are not named")
            return kind.decode("ascii"), values, unpacked(body) if body else {}
        except (ValueError, RecursionError) as error:
            raise Broken(f"a message that cannot be read: {str(error).splitlines()[0]:.200}") from None

    def _read(self, length: int) -> bytes:
        try:
            content = self._incoming.read(length)
        except (OSError, ValueError):
            content = b""
        if len(content or b"") < length:
            raise Closed("the other side is gone")
        return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors, wherever they are, as safetensors bytes."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def unpacked(content: bytes) -> dict[str, Tensor]:
    """Raises ValueError for what are no tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, KeyError) as error:
        raise ValueError(str(error)) from None


def of_worker() -> Channel:
    """The channel of this process to the harness that started it. From now on what is printed goes to stderr."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  it lives as long as the process
    return Channel(incoming, outgoing)

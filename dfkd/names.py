"""Names, whole numbers and paths as people type them: checked where they are read, before anything is opened."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

from dfkd.errors import UserError, shown

# Of methods, recipes, data, protocols, networks and priors: they become parts of paths. Also a JSON schema's pattern.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
LARGEST = 2**63 - 1


def check_name(name: object, what: str = "a name") -> str:
    """`name`, which is one. Raises UserError, also for what is no text."""
    if not isinstance(name, str) or not re.fullmatch(NAME[1:-1], name):
        rule = "letters and digits, after the first also '.', '_' and '-', a hundred at most"
        raise UserError(f"{what} has {rule}, unlike {shown(name)}")
    return name


def network_name(text: str) -> str:
    """A network or a pair of them, as it is part of paths: `timm.efficientnet_lite0` for `timm/efficientnet_lite0`."""
    return check_name(text.replace("/", "."))


def whole(text: str) -> int:
    """A decimal number from 0 that fits into 64 bits, such as a seed. Raises UserError."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", text) or int(text) > LARGEST:
        raise UserError(f"a whole number from 0 to {LARGEST} is expected, not {shown(text)}")
    return int(text)


def device(text: str) -> str:
    """How a device is written; whether there is one, torch knows. Raises UserError."""
    if not re.fullmatch(r"[a-z]+(:[0-9]{1,3})?", text) or text.startswith("cpu:"):
        raise UserError(f"a device is written cpu, cuda or cuda:1, unlike {shown(text)}")
    return text


def path(text: str) -> Path:
    """A path, `~` and `~user` being home folders. Raises UserError for what none can be, or cannot be looked at: a link
    to itself, a name too long for the system, a folder that may not be entered."""
    if not text or "\0" in text:
        raise UserError(f"{shown(text)} is no path")
    try:
        found = Path(text).expanduser()
        os.stat(found)
    except (FileNotFoundError, NotADirectoryError):  # whoever reads it or writes to it will see
        return found
    except (OSError, RuntimeError) as error:
        raise UserError(f"{shown(text)} is no path: {getattr(error, 'strerror', None) or error}") from None
    return found


def minutes(text: str) -> float:
    """A length of time above 0. Raises UserError."""
    try:
        value = float(text) if re.fullmatch(r"[0-9.e-]+", text) else math.nan  # Python reads 1_0 as 10, too
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"takes minutes above 0, not {shown(text)}")
    return value


def several(read: Callable[[str], object]) -> Callable[[str], list]:
    """What reads a list with commas, of different things."""

    def convert(text: str) -> list:
        found = [read(part) for part in text.split(",")]
        if len(set(found)) < len(found):
            raise UserError(f"{shown(text)} names one twice")
        return found

    return convert


def option(read: Callable[[str], object]) -> Callable[[str], object]:
    """A type of command-line options, whose refusals are argparse's, which names the option."""

    def convert(text: str) -> object:
        try:
            return read(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert

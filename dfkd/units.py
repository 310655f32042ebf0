"""Quantities as people read them."""

from __future__ import annotations

import re

_SIZES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "MiB": 2**20, "GiB": 2**30}
_QUANTITY = re.compile(r"([+-]?\d+(?:\.\d+)?)(?: (MiB|GiB|[smhd])\b)?")


def duration(seconds: float) -> str:
    """Seconds for people: `8.4 s`, `4 m 12 s`, `1 h 05 m`, `2 d 03 h`, `1,204 d`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds else "0 s"
    seconds = round(seconds)
    if seconds < 3600:
        return f"{seconds // 60} m {seconds % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} m"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02} h" if hours < 10 * 24 else f"{round(hours / 24):,} d"


def memory(size: float) -> str:
    """Bytes for people: `312 MiB`, `1.5 GiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def magnitude(text: str) -> float | None:
    """The number that a text begins with, by which it sorts: `4 m 12 s` → 252, `1.5 GiB` in bytes, `−0.30 (3)` → −0.3,
    `3 × 2 d` six days.

    None for a text that begins with no number.
    """
    text = text.replace("−", "-").replace(",", "")
    times, _, each = text.partition(" × ")
    if each and times.isdecimal():
        return int(times) * (magnitude(each) or 0.0)
    first = _QUANTITY.match(text)
    if first is None:
        return None
    size = float(first[1]) * _SIZES.get(first[2], 1)
    rest = re.match(r" (\d+) ([smh])\b", text[first.end() :]) if first[2] else None
    return size + (float(rest[1]) * _SIZES[rest[2]] if rest else 0.0)

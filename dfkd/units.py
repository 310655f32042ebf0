"""Quantities as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds for people: `8.4 s`, `4 m 12 s`, `1 h 05 m`, `2 d 03 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds else "0 s"
    seconds = round(seconds)
    if seconds < 3600:
        return f"{seconds // 60} m {seconds % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} m"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02} h"


def memory(size: float) -> str:
    """Bytes for people: `312 MiB`, `1.5 GiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"

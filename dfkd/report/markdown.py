"""Text from anybody's hand, written so that Markdown shows it as it is: no markup, no HTML, no broken table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from tabulate import tabulate

# Nothing in a code span means anything, nor does an underscore inside a word, as in wrn40_2.
_MEANING = re.compile(r"`[^`|]+`|[\\`*|<>\[\]&$~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def plain(text: str) -> str:
    """On one line, without what cannot be seen, and with every sign escaped that could mean something but `code`."""
    return _MEANING.sub(lambda found: found[0] if len(found[0]) > 1 else f"\\{found[0]}", _line(text))


def code(text: str) -> str:
    """As a code span, in which nothing can be escaped."""
    return f"`{_line(text).replace('`', chr(39)).replace('|', '¦')}`"


def link(url: str) -> str:
    """An address in angle brackets."""
    return f"<{quote(url.strip(), safe=':/?#[]@!$&()*+,;=%~')}>"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], align: Sequence[str]) -> str:
    """A table of cells that are Markdown already, each column aligned "left" or "right"."""
    return tabulate(rows, headers, tablefmt="pipe", colalign=align, disable_numparse=True) + "\n"


def _line(text: str) -> str:
    return "".join(sign for sign in " ".join(text.split()) if sign.isprintable())

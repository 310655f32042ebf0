"""The generated Markdown as HTML: a tree of its headings, tables that sort, links that stay within the page."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

from dfkd.report.plots import GRIDS
from dfkd.units import magnitude

ARROW = " → "  # in the heading of a pair
LEVELS = ("h1", "h2", "h3", "h4", "h5")
# Where a link of the generated files leads within the page; one that leads elsewhere is text there.
_TARGETS: tuple[tuple[str, Callable[[re.Match], str]], ...] = (
    (r"https?://.*", lambda found: found[0]),
    (r"(?:(?:\.\./)?LEADERBOARD\.md)?#(.+)", lambda found: f"#{found[1]}"),
    (r"(?:\.\./)?LEADERBOARD\.md", lambda found: "#overview"),
    (r"(?:\.\./)?CLAIMS\.md(?:#(.+))?", lambda found: "#claims" + (f"-{found[1]}" if found[1] else "")),
    (r"(?:\.\./)?(?:tables/)?([^/#]+)\.md(?:#(.+))?", lambda found: "#" + "-".join(filter(None, found.groups()))),
    (r"(?:\.\./)?records/(.+)\.json", lambda found: f"#run/{found[1]}"),
    (rf"(?:\.\./)?plots/({GRIDS}/.+)\.png", lambda found: f"#{found[1]}"),
)


@dataclass(frozen=True)
class Part:
    """A heading with what stands below it, as HTML; `place` is (data, protocol, pair) where it names a pair."""

    title: str
    anchor: str
    body: str
    parts: tuple[Part, ...]
    place: tuple[str, str, str] | None


def document(text: str, title: str, places: Collection[str] = (), anchored: bool = True) -> Part:
    """A Markdown file under this title; its own, and its first paragraph, which speaks of the file, are left out.

    The anchors of its headings begin with the title if `anchored`, and so do its links to them. `places` has what there
    is to link to: cells with records, as `data/pair/method/protocol`, and the anchors of grids.
    """
    prefix = _slug(title) if anchored else ""
    tokens = _markdown().parse(text)
    if prefix:
        _lead_within(tokens, prefix)
    if tokens and tokens[0].tag == "h1":
        tokens = tokens[3:]
        if tokens and tokens[0].type == "paragraph_open":
            tokens = tokens[3:]
    return _part(tokens, (title,), _slug(title), prefix, places)


@functools.cache
def _markdown() -> MarkdownIt:
    """Without HTML: what looks like it is shown as it stands."""
    return MarkdownIt("commonmark", {"html": False}).enable("table")


def _part(tokens: list[Token], path: tuple[str, ...], anchor: str, prefix: str, places: Collection[str]) -> Part:
    """The tokens below a heading; `path` has its title after those of the headings above, `prefix` begins the anchors
    of those below."""
    place = _place(path)
    level = next((tag for tag in LEVELS if any(token.tag == tag for token in tokens)), None)
    starts = [i for i, token in enumerate(tokens) if token.type == "heading_open" and token.tag == level]
    own, parts = tokens[: starts[0]] if starts else tokens, []
    for begin, end in itertools.pairwise([*starts, len(tokens)]):
        title = _text(tokens[begin + 1])
        below = "-".join(filter(None, (prefix, _slug(title))))
        parts.append(_part(tokens[begin + 3 : end], (*path, title), below, below, places))
    return Part(path[-1], anchor, _html(own, place, places), tuple(parts), place)


def _place(path: Sequence[str]) -> tuple[str, str, str] | None:
    if len(path) != 3 or ARROW not in path[2]:
        return None
    return path[0], path[1], path[2].replace(ARROW, "-")


def _slug(title: str) -> str:
    """As GitHub makes an anchor of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _html(tokens: Sequence[Token], place: tuple | None, places: Collection[str]) -> str:
    tokens = list(_without_images(tokens))
    heading = place[2].replace("-", ARROW) if place else ""
    for i, token in enumerate(tokens):
        children = token.children or []
        for child in children:
            if child.type == "link_open":
                _lead(child, children, places)
        if [child.type for child in children] == ["strong_open", "text", "strong_close"] and tokens[i - 1].type == (
            "paragraph_open"
        ):
            heading = children[1].content
            tokens[i - 1].tag = tokens[i + 1].tag = "h5"
            token.children = children[1:2]
        elif token.type == "table_open":
            token.attrSet("aria-label", heading)
            _cells(tokens[i : _end(tokens, i)], place, places)
    html = _markdown().renderer.render(tokens, _markdown().options, {})
    html = html.replace("<table", '<div class="scroll" tabindex="0" role="region" aria-label="table"><table')
    return html.replace("</table>", "</table></div>")  # the only tags of that name: text is escaped


def _without_images(tokens: Sequence[Token]) -> Iterator[Token]:
    """Less the paragraphs of figures: the page draws its own from the same numbers."""
    skip = 0
    for i, token in enumerate(tokens):
        following = (tokens[i + 1].children or []) if token.type == "paragraph_open" else []
        if following and all(child.type in ("image", "softbreak") for child in following):
            skip = 3
        if skip:
            skip -= 1
        else:
            yield token


def _end(tokens: Sequence[Token], start: int) -> int:
    return next(i for i in range(start, len(tokens)) if tokens[i].type == "table_close")


def _lead_within(tokens: Sequence[Token], prefix: str) -> None:
    """Give links to headings of the same file the prefix of their anchors."""
    for child in itertools.chain.from_iterable(token.children or [] for token in tokens):
        href = str(child.attrGet("href") or "")
        if href.startswith("#"):
            child.attrSet("href", f"#{prefix}-{href[1:]}")


def _lead(link: Token, children: Sequence[Token], places: Collection[str]) -> None:
    """Point a link to its place within the page, or make it text."""
    href = unquote(str(link.attrGet("href") or ""))
    found = ((re.fullmatch(pattern, href), lead) for pattern, lead in _TARGETS)
    target = next((lead(match) for match, lead in found if match), None)
    if target is not None and (not target.startswith(f"#{GRIDS}/") or target[1:] in places):
        link.attrs = {"href": target}
        if target[0] != "#":
            link.attrs["rel"] = "noreferrer"
        return
    closing = children[list(map(id, children)).index(id(link)) :]
    for token in (link, next(token for token in closing if token.type == "link_close")):
        token.tag, token.attrs = "span", {}


def _cells(table: Sequence[Token], place: tuple | None, places: Collection[str]) -> None:
    """Tell the cells of a table what they sort by, and link methods to their records."""
    headers, column = [], 0
    for i, token in enumerate(table):
        if token.type == "th_open":
            headers.append(_text(table[i + 1]))
            token.attrSet("scope", "col")
        elif token.type == "tr_open":
            column = 0
        elif token.type == "td_open":
            text = _text(table[i + 1])
            if token.attrGet("style"):  # aligned right, as numbers are
                number = magnitude(text)
                token.attrSet("data-order", "-" if number is None else f"{number:.12g}")
            if headers[column] == "method":
                token.attrSet("class", "method")
                _link(table[i + 1], text, place, places)
            column += 1


def _link(cell: Token, text: str, place: tuple | None, places: Collection[str]) -> None:
    if place is None or not text:
        return
    data, protocol, pair = place
    name = f"{data}/{pair}/{text.split()[0]}/{protocol}"
    if name in places:
        opening, closing = Token("link_open", "a", 1, attrs={"href": f"#run/{name}"}), Token("link_close", "a", -1)
        cell.children = [opening, *(cell.children or []), closing]


def _text(inline: Token) -> str:
    return "".join(child.content for child in inline.children or [])

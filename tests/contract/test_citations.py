"""What the project's words point to is there: sections cited in code, recipes and documents, and Markdown links."""

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = {
    path: path.read_text(encoding="utf-8")
    for folder in ("dfkd", "methods", "baselines", "benchmarks", "docs", "results", "tests", ".")
    for path in (ROOT / folder).glob("*" if folder == "." else "**/*")
    if path.suffix in (".md", ".py", ".yaml")
}
# `baselines.md 1.2, 1.3 and 1.6`, `dda.md 1.2 to 1.4`, `ssdkd.md E6 (as published)`; a comment's line may end inside.
SECTION = r"E?\d+(?:\.\d+)*"
CITATION = re.compile(rf"\b([\w-]+)\.md((?:(?:,|,? and| to)? {SECTION}\b(?: \([^)]*\))?)+)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@cache
def sections(document: str) -> set[str]:
    """The numbers of the headings of docs/methods/<document>.md and of its equations; none where it is not."""
    found = WORDS.get(ROOT / "docs" / "methods" / f"{document}.md", "")
    return {heading.split()[0] for heading in HEADING.findall(found)} | set(re.findall(r"\((E\d+)\)", found))


def anchors(path: Path) -> set[str]:
    """What GitHub makes of a document's headings, code blocks apart."""
    headings = HEADING.findall(re.sub(r"^```.*?^```", "", WORDS[path], flags=re.MULTILINE | re.DOTALL))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def opens(document: Path, link: str) -> bool:
    file, _, anchor = link.partition("#")
    target = (document.parent / file).resolve() if file else document
    return target.exists() and (not anchor or anchor in anchors(target))


def test_every_cited_section_is_there():
    cited = [
        (path, f"{document}.md {number}", number in sections(document))
        for path, text in WORDS.items()
        for document, numbers in CITATION.findall(re.sub(r"\s*\n[\s#]*", " ", text))
        for number in re.findall(SECTION, re.sub(r"\([^)]*\)", "", numbers))
    ]
    assert len(cited) > 60, "the pattern finds what there is"
    assert not [f"{path}: {words}" for path, words, there in cited if not there]


def test_a_section_is_cited_with_its_document():
    bare = re.compile(r"\b[Ss]ections? \d")
    assert not [path for path, text in WORDS.items() if path.suffix != ".md" and bare.search(text)]


def test_every_link_opens():
    links = [
        (path, link)
        for path, text in WORDS.items()
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if path.suffix == ".md" and not link.startswith(("https://", "http://"))
        if ROOT / "tests" not in path.parents  # expected tables, whose plots are nowhere
    ]
    assert len(links) > 60, "the pattern finds what there is"
    assert not [f"{path}: {link}" for path, link in links if not opens(path, link)]

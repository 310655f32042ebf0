"""Text from anybody's hand changes no page: it is shown, and means nothing."""

import pytest
from markdown_it import MarkdownIt

from dfkd.report import leaderboard, markdown, papers, plots
from tests.records.conftest import diagnostics, gathered, prior
from tests.records.test_leaderboard import published

HOSTILE = {
    "bars": "a|b || c",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "comment": "<!-- swallow",
    "entity": "&lt;b&gt;",
    "link": "[here](http://example.org) ![x](y) <http://example.org>",
    "emphasis": "*a* _b_ __c__ **d** ~~e~~ a_b",
    "code": "``a`<b>`` ` `c|d` ```",
    "lines": "one\n\n# two\n- three\n\n| a | b |\n|--|--|\n---",
    "backslashes": "\\| \\\\| \\<b> \\",
    "mathtext": "$x^2 $ \\frac{ $$",
    "invisible": "a\u202eb\x1b[31mc\x00\u2028d",
    "reference": "[Fast]: http://example.org",
    "braces": "{data} %s {0}",
    "odd name": "_a_-_b_",
}


def pages(record, text):
    said = {"kind": text, "name": text, "trained_on": text, "digest": None, "origin": "foreign", "seconds": 0}
    runs = [record("ssdkd", hardware=text, changed=text, test_changed=False, prior=said, report={text: 0.5})]
    runs += [record("fast-10", 80.0, hardware="CPU", diagnostics=diagnostics(), prior=prior())]
    runs[0] |= {"note": text}
    runs += [record("cmi", status="unsupported") | {"error": text}]
    rows = [published("ssdkd", 91.0, source=text, note=text), published("fast-10", 90.0)]
    results = gathered(runs)
    return runs, leaderboard.render(leaderboard.sheets_of(results), papers.places(results, rows))


def shape(page):
    """The kinds of all that a Markdown reader finds in a page, its texts left out."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)
    inner = [inner.type for token in tokens for inner in token.children or ()]
    quiet = ("text", "text_special", "softbreak")
    return [token.type for token in tokens], [name for name in inner if name not in quiet]


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_a_record_says_changes_the_page(record, name):
    _, plain = pages(record, "plain")
    _, hostile = pages(record, HOSTILE[name])
    for file, page in plain.items():
        outer, inner = shape(page)
        found_outer, found_inner = shape(hostile[file])
        assert found_outer == outer
        # Code spans of the text itself are welcome.
        assert [kind for kind in found_inner if kind != "code_inline"] == [k for k in inner if k != "code_inline"]


@pytest.mark.parametrize("text", ["wrn40_2 → wrn16_1", "budget of `cpu` (docs/reproduction.md)", "2.15.0+cpu"])
def test_what_means_nothing_stays_as_it_is(text):
    assert markdown.plain(text) == text


def test_an_address_stays_one():
    url = "https://example.org/a_b?c=d&e=%20#f"
    assert markdown.link(url) == f"<{url}>"
    assert markdown.link("https://a b>c") == "<https://a%20b%3Ec>"


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("text", [*HOSTILE.values(), "_hidden", "x" * 5000], ids=range(len(HOSTILE) + 2))
def test_nothing_that_a_record_says_stops_a_plot(record, text, tmp_path):
    runs, _ = pages(record, text)
    assert len(plots.draw(gathered(runs[:2]), tmp_path)) == 2


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 3e9])
def test_no_time_stops_a_plot(record, seconds, tmp_path):
    runs = [record("ssdkd", synthesis=seconds, distillation=seconds), record("fast-10")]
    for key in ("setup", "buffer", "evaluation", "bookkeeping"):
        runs[0]["time"][key] = 0.0
    runs[0]["time"] |= {"scored": 2 * seconds, "total": 2 * seconds}
    assert len(plots.draw(gathered(runs[:2]), tmp_path)) == 2

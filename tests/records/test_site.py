"""The page as a file: what is in it, what is escaped, how large it is and how long it takes."""

import base64
import gzip
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dfkd import paths, report
from dfkd.report import plots, site
from dfkd.report.site.markup import document
from tests.records.conftest import diagnostics, place, results_in, two_thousand
from tests.records.test_leaderboard import published

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><script>hacked = 1</script>\"'><img src=x onerror=hacked=1>"


class Page(HTMLParser):
    """Elements of a page: ids, links within it, tags, and the text of its scripts by their id."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.tags, self.scripts, self._open = [], [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self._open = attrs.get("id", tag) if tag == "script" else None

    def handle_data(self, data):
        if self._open:
            self.scripts[self._open] = self.scripts.get(self._open, "") + data


def written():
    path, problems = site.write()
    assert not problems
    return path.read_text(encoding="utf-8")


def data_of(page):
    return json.loads(gzip.decompress(base64.b64decode(page.scripts["data"])))


@pytest.fixture
def results(tmp_path, monkeypatch):
    results_in(tmp_path / "results", monkeypatch)


def test_every_record_is_in_the_page_with_its_state_and_its_command(record, results):
    runs = [record("ssdkd", 90.0 + seed, seed=seed) for seed in range(2)]
    runs += [record("kd-real", 92.0, reference=True), record("dafl", status="failed")]
    place(*runs, record("ssdkd", 50.0, seed=7, custom=True))
    found = {run["name"]: run for run in data_of(Page(written()))["runs"]}
    assert [found[name]["record"] for name in sorted(found)] == sorted(runs, key=lambda run: report.Run.of(run).name)
    run = found["cifar10/wrn40_2-wrn16_1/ssdkd/paper-seed1"]
    assert run["state"] == "stale"
    assert run["command"].startswith("python bench.py run --data cifar10 --protocol paper --pair wrn40_2-wrn16_1 ")
    assert found["cifar10/wrn40_2-wrn16_1/dafl/paper-seed0"]["state"] == "failed"


def test_the_same_records_give_the_same_page(record, results):
    place(record())
    assert written() == written()


def test_a_page_without_records_says_so(results):
    assert "No records yet" in written()


def test_what_comes_from_records_is_no_markup(record, results):
    made = record("ssdkd", hardware=HOSTILE, changed=HOSTILE, diagnostics=diagnostics(), report={HOSTILE: 1.0})
    refused = record("cmi", status="unsupported")
    place(made | {"note": HOSTILE}, refused | {"error": HOSTILE}, record("dafl", status="failed") | {"error": HOSTILE})
    page = Page(written())
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert not [attrs for tag, attrs in page.tags if tag == "img" or any(name.startswith("on") for name in attrs)]
    said = {run["record"].get("note") or run["record"]["error"] for run in data_of(page)["runs"]}
    assert said == {HOSTILE}


def test_claims_are_no_markup_either(results, tmp_path, monkeypatch):
    hostile = f"{HOSTILE} [x](javascript:alert(1))"
    claim = {"paper": hostile, "says": hostile, "source": hostile, "evidence": "read", "data": ["cifar10"]}
    claim |= {"protocols": ["paper"], "remark": hostile}
    claim["all"] = [{"quantity": "score", "row": "ssdkd", "is": "more", "than": "fast-10"}]
    monkeypatch.setattr(paths, "claims", lambda: tmp_path / "claims.yaml")
    paths.claims().write_text(json.dumps({"one": claim}), encoding="utf-8")
    page = Page(written())
    assert "claims-one" in page.ids and "#claims-one" in page.links
    assert sum(tag == "script" for tag, _ in page.tags) == 3 and not [tag for tag, _ in page.tags if tag == "img"]
    assert not [link for link in page.links if "javascript" in link]


def test_nothing_is_fetched_and_no_other_script_runs(record, results):
    place(record())
    page = Page(written())
    (policy,) = (attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for _, attrs in page.tags:
        for name in ("src", "srcset", "poster", "data"):
            assert attrs.get(name, "data:").startswith("data:")
    assert [attrs["href"] for tag, attrs in page.tags if tag == "link"] == ["data:,"]


def test_every_link_within_the_page_leads_somewhere(record, results):
    place(record("ssdkd"), record("kd-real", reference=True), record("fast-10", protocol="cpu", data="digits"))
    page = Page(written())
    runs = data_of(page)["runs"]
    places = {*page.ids, *(f"run/{run['name']}" for run in runs), *(f"run/{run['cell']}" for run in runs)}
    within = [link[1:] for link in page.links if link.startswith("#")]
    assert "run/cifar10/wrn40_2-wrn16_1/ssdkd/paper" in within
    assert set(within) <= places
    assert len(page.ids) == len(set(page.ids))


def test_links_of_the_generated_files_stay_within_the_page():
    text = (
        "[a](tables/cifar10.md#published-numbers) [b](records/digits/p/m/quick-seed0.json) "
        "[c](../LEADERBOARD.md#columns) "
        "[d](https://example.org/x) [e](../docs/protocol.md) [f](plots/samples/a/b/c.png) "
        "[g](javascript:x) [h](CLAIMS.md) [i](plots/samples/none.png)"
    )
    body = document(text, "x", {"samples/a/b/c"}).body
    links = re.findall(r'href="([^"]*)"[^>]*>(\w)<', body)
    assert links == [
        ("#cifar10-published-numbers", "a"),
        ("#run/digits/p/m/quick-seed0", "b"),
        ("#columns", "c"),
        ("https://example.org/x", "d"),
        ("#samples/a/b/c", "f"),
        ("#claims", "h"),
    ]


def test_cells_sort_by_the_number_they_show(record, results):
    runs = [record("ssdkd", 90.0 + seed, seed=seed, synthesis=7200.0) for seed in range(2)]
    place(*runs, record("dafl", 81.0, synthesis=9.5))
    page = Page(written())
    orders = [attrs["data-order"] for tag, attrs in page.tags if tag == "td" and "data-order" in attrs]
    assert {"90.5", "81", "7200", "9.5", "51200", "-"} <= set(orders)


def test_published_numbers_keep_their_sources(record, results, monkeypatch):
    monkeypatch.setattr(report, "read_published", lambda path: [published("ssdkd", 93.1)])
    place(record("ssdkd"))
    page = Page(written())
    assert "https://example.org/paper" in page.links


def test_grids_of_samples_are_in_the_page_and_small(record, results):
    from PIL import Image

    place(record("ssdkd"))
    path = paths.plots() / "samples/cifar10/paper/wrn40_2-wrn16_1-ssdkd.png"
    path.parent.mkdir(parents=True)
    Image.effect_noise((3000, 500), 80).save(path)
    page = Page(written())
    (image,) = (attrs["src"] for tag, attrs in page.tags if tag == "img")
    assert image.startswith("data:image/webp;base64,") and len(image) < 500_000
    assert "samples/cifar10/paper/wrn40_2-wrn16_1-ssdkd" in page.ids


def test_a_broken_record_is_named_and_the_rest_is_shown(record, results):
    place(record("ssdkd"))
    broken = paths.records() / "cifar10/a-b/m/paper-seed0.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    path, (problem,) = site.write()
    assert str(broken) in str(problem)
    page = path.read_text()
    assert "paper-seed0.json" in page and len(data_of(Page(page))["runs"]) == 1


CLOCKED = """
import sys
from pathlib import Path
from dfkd import paths
paths.RESULTS = Path(sys.argv[1])
from dfkd.report import site
path, problems = site.write()
assert not problems and "torch" not in sys.modules
from tests.records.conftest import peak
print(path.stat().st_size, peak())
"""


@pytest.mark.slow
def test_two_thousand_records_fit(results):
    """All tables, the page, and a grid of samples for each cell: 8 MB, 1 GiB. For time: benchmarks/speed."""
    from PIL import Image

    runs = list(two_thousand())
    place(*runs)
    grid = paths.plots() / "samples/grid.png"
    grid.parent.mkdir(parents=True)
    Image.merge("RGB", [Image.effect_noise((395, 197), 80)] * 3).resize((790, 394), Image.NEAREST).save(grid)
    for run in runs:
        link = paths.plots() / plots.grid_of(report.Run.of(run).cell)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(grid)
    said = subprocess.run(
        [sys.executable, "-c", CLOCKED, paths.RESULTS], cwd=ROOT, check=True, capture_output=True, text=True
    )
    size, memory = map(float, said.stdout.split())
    assert size < 8e6 and memory <= 2**30

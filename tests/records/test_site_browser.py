"""The page in a browser: it sorts, filters, opens cards, fits a phone, and says nothing on the console.

Skipped where there is no Chromium; a failure there if DFKD_REQUIRE_BROWSER is set, as CI sets it.
"""

import os
import shutil

import pytest

from dfkd.report import site
from tests.records.conftest import diagnostics, make, place, results_in
from tests.records.test_site import HOSTILE

PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
DESKTOP = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
BY = "css selector"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a page of some twenty records."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        results_in(folder, patch)
        table = {"protocol": "cpu", "teacher": "deeplabv3plus_mobilenetv2", "student": "deeplabv3plus_thin32"}
        runs = [make("ssdkd", 70.0 + seed, seed=seed, synthesis=7200.0, **table) for seed in range(3)]
        runs += [make("fast-10", 65.5, synthesis=500.0, diagnostics=diagnostics(), **table)]
        runs += [make("dafl", 9.25, synthesis=20.0, hardware=HOSTILE, changed=HOSTILE, **table) | {"note": HOSTILE}]
        runs += [make("kd-real", 92.0, reference=True, **table), make("cmi", status="diverged", **table)]
        runs += [
            make(f"method{i}", 50.0 + i, data="digits", protocol="quick", report={HOSTILE: 1.0}) for i in range(30)
        ]
        place(*runs)
        path, problems = site.write()
    assert not problems
    return path.as_uri()


@pytest.fixture(scope="module")
def driver():
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    service = shutil.which("chromedriver")
    if not (binary and service):
        told = "needs chromium and chromedriver: apt-get install chromium chromium-driver"
        (pytest.fail if os.environ.get("DFKD_REQUIRE_BROWSER") else pytest.skip)(told)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(service))
    yield driver
    driver.quit()


@pytest.fixture
def show(driver, page):
    """show(place, screen=DESKTOP): the page afresh at this place; afterwards its console must be empty."""

    def show(name="", screen=DESKTOP):
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        driver.get("about:blank")
        driver.get(f"{page}#{name}")
        driver.set_script_timeout(60)
        driver.execute_async_script(
            "const done = arguments[0]; const look = () => "
            "'ready' in document.documentElement.dataset ? setTimeout(done, 50) : setTimeout(look, 20); look();"
        )
        return driver

    yield show
    assert driver.execute_script("return window.hacked") is None
    assert driver.get_log("browser") == []


def column(driver, table, number):
    """The texts of a column as they stand."""
    script = (
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(r => r.cells[arguments[1]].innerText)"
    )
    return driver.execute_script(script, table, number)


def soon(driver, found, expected):
    """Whether `found()` comes to be what is expected: tables are sorted in a moment of their own after a click."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    try:
        return WebDriverWait(driver, 10, 0.05).until(lambda _: expected(found()))
    except TimeoutException:
        raise AssertionError(found()) from None


def head(driver, table, title):
    """A heading's number, and itself."""
    heads = driver.find_elements(BY, f"{table} thead th")
    return next((i, each) for i, each in enumerate(heads) if each.text.strip() == title)


COSTS = "#cifar10 [data-place] h5 ~ .scroll table"
FIRST = "#cifar10 [data-place*='/cpu/'] > .scroll:first-of-type table"


def test_numbers_sort_by_size_and_what_lacks_stays_last(show):
    driver = show("cifar10")
    number, last = head(driver, FIRST, "last")
    last.click()
    shown = lambda: [text.split()[0] for text in column(driver, FIRST, number)]  # noqa: E731
    soon(driver, shown, lambda found: found == ["92.00", "71.00", "65.50", "9.25", "–"])


def test_times_sort_as_times(show):
    driver = show("cifar10")
    tables = driver.find_elements(BY, "#cifar10 table")
    costs = next(table for table in tables if "synthesis" in table.text)
    heads = costs.find_elements(BY, "thead th")
    number = next(i for i, each in enumerate(heads) if each.text == "synthesis")
    shown = lambda: [row.find_elements(BY, "td")[number].text for row in costs.find_elements(BY, "tbody tr")]  # noqa: E731
    heads[number].click()
    soon(driver, shown, lambda found: (found[0], found[-1]) == ("2 h 00 m", "20.0 s"))
    falling = shown()
    heads[number].click()
    soon(driver, shown, lambda found: found == falling[::-1])


def test_one_filter_serves_all_tables_of_a_view(show):
    driver = show("cifar10")
    driver.find_element(BY, "#cifar10 input[type=search]").send_keys("fast")
    rows = driver.execute_script(
        "return [...document.querySelectorAll('#cifar10 td.method')].map(cell => cell.innerText)"
    )
    assert "fast-10" in rows and all("fast" in row for row in rows)


def test_reference_rows_can_be_hidden(show):
    driver = show("cifar10")
    names = "return [...document.querySelectorAll('#cifar10 td.method')].map(cell => cell.innerText)"
    assert "kd-real" in driver.execute_script(names)
    driver.find_element(BY, "#cifar10 input[type=checkbox]").click()
    left = driver.execute_script(names)
    assert "kd-real" not in left and "ssdkd" in left


def test_a_method_opens_the_card_of_its_run(show):
    driver = show("cifar10")
    driver.find_element(BY, "#cifar10 td.method a[href*='/ssdkd/']").click()
    card = driver.find_element(BY, "dialog[open]")
    assert "python bench.py run --data cifar10 --protocol cpu" in card.text and "NVIDIA H200" in card.text
    assert card.find_elements(BY, "svg .series path")
    card.find_element(BY, "nav a[href$='seed2']").click()
    assert "72.00 %" in driver.find_element(BY, "dialog[open]").text
    driver.find_element(BY, "dialog button[aria-label=Close]").click()
    assert not driver.find_elements(BY, "dialog[open]")
    assert driver.execute_script("return location.hash") == "#cifar10"


def test_what_a_record_says_is_text_in_its_card(show):
    driver = show("run/cifar10/deeplabv3plus_mobilenetv2-deeplabv3plus_thin32/dafl/cpu-seed0")
    card = driver.find_element(BY, "dialog[open]")
    assert HOSTILE in card.text
    assert not card.find_elements(BY, "script, img")
    show("run/digits/wrn40_2-wrn16_1/method7/quick-seed0")
    show("runs")


def test_runs_are_paged_searched_and_chosen(show):
    driver = show("runs")
    assert len(column(driver, "#all", 0)) == 25
    driver.find_element(BY, ".dt-search input").send_keys("ssdkd")
    assert column(driver, "#all", 0) == ["ssdkd"] * 3
    driver = show("runs")
    driver.find_element(BY, "#all button[aria-label='Choose by data']").click()
    choices = driver.find_elements(BY, ".dtcc-dropdown .dtcc-list-buttons button")
    next(choice for choice in choices if "cifar10" in choice.text).click()
    assert set(column(driver, "#all", 1)) == {"cifar10"}
    number, last = head(driver, "#all", "last")
    last.click()
    assert column(driver, "#all", number)[0] == "92.00" and column(driver, "#all", number)[-1] == "–"


VIEWS = ("overview", "cifar10", "digits", "runs", "guide")


@pytest.mark.parametrize("view", [*VIEWS, "run/cifar10/deeplabv3plus_mobilenetv2-deeplabv3plus_thin32/fast-10/cpu"])
def test_nothing_is_wider_than_a_phone(show, view):
    driver = show(view, PHONE)
    wide, seen = driver.execute_script(
        "const card = document.querySelector('dialog[open]');"
        "return [Math.max(document.documentElement.scrollWidth, card ? card.scrollWidth : 0), innerWidth]"
    )
    assert wide <= seen == PHONE["width"]


def test_one_view_is_shown_at_a_time_and_charts_are_drawn(show):
    for view in VIEWS:
        driver = show(view)
        shown = [each.get_attribute("id") for each in driver.find_elements(BY, ".view") if each.is_displayed()]
        assert shown == [view]
    driver = show("cifar10")
    assert len(driver.find_elements(BY, "#cifar10 .chart svg .series")) == 6  # three methods in two charts


def test_dark_is_a_click_away(show):
    driver = show("overview")
    colour = "return getComputedStyle(document.body).backgroundColor"
    before = driver.execute_script(colour)
    driver.find_element(BY, "#theme").click()
    assert driver.execute_script(colour) != before

"""The page of a timeline, in a real browser without network."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import JsonValue
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from fiberstore import FiberRecord
from fiberstore.contract.results import Timeline, TimelinePoint
from fiberstore.testing.examples import BEGIN_OF_TIME, END_OF_TIME, NOON, at, fiber, uid
from fiberstore.timeline.page import timeline_page

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1400,1200",
)  # fmt: skip
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    '"><img src=x onerror="window.hacked = 3">',
    "<b>bold</b> &lt;b&gt; &amp;amp; 'single' \"double\" `${window.hacked = 4}`",
    "@time @{source}{safe} $index {{ title }} {% raw %} %s \\u0041 $$x^2$$ \\(x\\)",
    "--> ]]> <!-- */ //",
)
# Ids whose first group of digits tells them apart.
FIRST, SECOND, THIRD = (UUID(int=number << 96) for number in (1, 2, 3))

pytestmark = pytest.mark.slow

Open = Callable[[str], WebDriver]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    if CHROMIUM is None or DRIVER is None:
        missing = "needs a browser: apt-get install chromium chromium-driver"
        if "CI" in os.environ:
            pytest.fail(missing)
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def open_page(browser: WebDriver, tmp_path: Path) -> Iterator[Open]:
    """Open a page from disk; in the end, it must have asked for no other file and complained of nothing."""
    url = (tmp_path / "page.html").as_uri()

    def open_page(page: str) -> WebDriver:
        (tmp_path / "page.html").write_text(page, encoding="utf-8")
        _log(browser, "browser")
        _log(browser, "performance")
        browser.get(url)
        if "Bokeh" in page:
            idle = "return Bokeh.documents.length == 1 && Bokeh.documents[0].is_idle"
            WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(idle))
        return browser

    yield open_page
    assert [entry for entry in _log(browser, "browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(entry["message"])["message"] for entry in _log(browser, "performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    # Chromium loads its own first page, too.
    assert {address for address in asked if not address.startswith(("data:", "chrome:"))} == {url}


def test_page_has_a_lane_for_each_fiber_and_a_point_for_each_log(open_page: Open) -> None:
    fibers = [_fiber(FIRST), _fiber(SECOND, "login", closed=True), _fiber(THIRD)]
    points = [_point(FIRST, 1, "web"), _point(FIRST, 2, "db"), _point(SECOND, 3, "web")]
    driver = open_page(timeline_page(Timeline(fibers, points, 3), {}, title="A & B <i>"))
    assert driver.title == "A & B <i>"
    assert _lanes(driver) == ["request 00000001", "login 00000002", "request 00000003"]
    assert _points(driver) == {"web": 2, "db": 1}
    text = driver.find_element("tag name", "body").text
    assert "A & B <i>" in text
    assert "3 fibers (2 open, with ▷ at the end), 3 logs, " in text
    assert "2024-02-29 12:00:00.000000 UTC to 2024-02-29 12:00:09.000000 UTC" in text


def test_page_of_thinned_points_says_how_many_are_shown(open_page: Open) -> None:
    driver = open_page(timeline_page(Timeline([_fiber(FIRST)], [_point(FIRST, 1)], 12_345), {}))
    assert "1 of 12,345 logs shown, evenly chosen" in driver.find_element("tag name", "body").text


def test_page_of_an_empty_timeline_says_so(open_page: Open) -> None:
    driver = open_page(timeline_page(Timeline([], [], 0), {}))
    assert "No fibers: there is nothing to show." in driver.find_element("tag name", "body").text


def test_page_shows_fibers_without_logs_and_at_the_ends_of_time(open_page: Open) -> None:
    fibers = [_fiber(FIRST, first=BEGIN_OF_TIME, last=BEGIN_OF_TIME), _fiber(SECOND, first=END_OF_TIME)]
    driver = open_page(timeline_page(Timeline(fibers, [], 0), {}))
    assert _lanes(driver) == ["request 00000001", "request 00000002"]
    assert "2 fibers (2 open, with ▷ at the end), 0 logs" in driver.find_element("tag name", "body").text


@pytest.mark.parametrize("text", HOSTILE)
def test_page_shows_hostile_text_as_text(open_page: Open, text: str) -> None:
    fibers = [_fiber(FIRST, text, attributes={text: text})]
    points = [_point(FIRST, 1, text, seconds=5)]
    driver = open_page(timeline_page(Timeline(fibers, points, 1), {uid(1): text}, title=text))
    assert driver.title.split() == text.split()
    _hover(driver, at(5))
    shown = _tooltips(driver)
    assert "2024-02-29 12:00:05.000000 UTC" in shown
    assert shown.count(text) >= 2, "the source and the line"
    assert json.dumps({text: text}) in shown
    assert text in driver.find_element("tag name", "h1").text
    assert driver.execute_script("return window.hacked === undefined")


def test_page_shows_a_line_with_its_breaks_and_the_controls_as_escapes(open_page: Open) -> None:
    text = "one\n  two\x1b[31m\u2028\u202e\x00" + "x" * 400
    points = [_point(FIRST, 1, "a\x07b", seconds=5)]
    driver = open_page(timeline_page(Timeline([_fiber(FIRST)], points, 1), {uid(1): text}))
    _hover(driver, at(5))
    shown = _tooltips(driver)
    assert "one\n  two\\x1b[31m\\u2028\\u202e\\x00xxx" in shown
    assert "a\\x07b" in shown
    assert "x" * 250 + "…" in shown
    assert "x" * 300 not in shown


def test_page_shows_the_time_to_the_microsecond(open_page: Open) -> None:
    time = NOON + timedelta(seconds=5, microseconds=123_457)
    points = [TimelinePoint(FIRST, time, "web", uid(1))]
    driver = open_page(timeline_page(Timeline([_fiber(FIRST)], points, 1), {}))
    _hover(driver, time)
    assert "2024-02-29 12:00:05.123457 UTC" in _tooltips(driver)
    assert "(the log is not there any more)" in _tooltips(driver)


def test_page_shows_points_of_several_sources_at_one_place_together(open_page: Open) -> None:
    points = [_point(FIRST, number, f"source {number}", seconds=5) for number in range(3)]
    texts = {uid(number): f"line {number}" for number in range(3)}
    driver = open_page(timeline_page(Timeline([_fiber(FIRST)], points, 3), texts))
    _hover(driver, at(5))
    (of_points,) = (tip.text for tip in _find_all(driver, ".bk-Tooltip") if "line" in tip.text)
    assert re.findall("source .|line .", of_points) == [
        f"{what} {number}" for number in range(3) for what in ("source", "line")
    ]


def test_page_shows_only_lanes_of_the_types_that_are_ticked(open_page: Open) -> None:
    fibers = [_fiber(FIRST), _fiber(SECOND, "login"), _fiber(THIRD)]
    driver = open_page(timeline_page(Timeline(fibers, [], 0), {}))
    login, request = _find_all(driver, "input[type=checkbox]")
    request.click()
    assert _lanes(driver) == ["login 00000002"]
    login.click()
    assert _lanes(driver) == []
    request.click()
    assert _lanes(driver) == ["request 00000001", "request 00000003"]


def test_page_hides_and_shows_a_source_by_its_name(open_page: Open) -> None:
    points = [_point(FIRST, 1, "web", seconds=3), _point(FIRST, 2, "web"), _point(FIRST, 3, "db", seconds=5)]
    driver = open_page(timeline_page(Timeline([_fiber(FIRST)], points, 3), {uid(3): "of the database"}))
    assert _points(driver) == {"web": 2, "db": 1}
    _click_legend(driver, "db")
    assert _points(driver) == {"web": 2, "db": 0}
    _hover(driver, at(5))
    assert "of the database" not in _tooltips(driver)
    _click_legend(driver, "db")
    _hover(driver, at(5))
    assert "of the database" in _tooltips(driver)
    assert _points(driver) == {"web": 2, "db": 1}


def test_page_zooms_by_the_wheel_down_to_microseconds_and_is_reset(open_page: Open) -> None:
    fibers = [_fiber(FIRST, last=at(3_600))]
    driver = open_page(timeline_page(Timeline(fibers, [_point(FIRST, 1, seconds=1_800)], 1), {}))
    whole = _range(driver)
    _wheel(driver, -120)
    narrow = _range(driver)
    assert whole[0] < narrow[0] < narrow[1] < whole[1]
    for _ in range(60):
        _wheel(driver, -960)
    assert 0.001 < _range(driver)[1] - _range(driver)[0] < 1
    (reset,) = _find_all(driver, ".bk-tool-icon-reset")
    reset.click()
    assert _range(driver) == whole


def test_page_of_many_fibers_shows_50_lanes_from_where_the_slider_is(open_page: Open) -> None:
    fibers = [_fiber(UUID(int=number << 96), first=at(100 * number)) for number in range(1, 501)]
    driver = open_page(timeline_page(Timeline(fibers, [], 0), {}))
    assert len(_lanes(driver)) == 50
    driver.execute_script("Bokeh.documents[0].get_model_by_name('lanes').value = 401")
    lanes = _lanes(driver)
    assert (len(lanes), lanes[0], lanes[-1]) == (50, f"request {401:08x}", f"request {450:08x}")
    first, last = _range(driver)
    assert first < at(40_100).timestamp() * 1_000 < at(45_000).timestamp() * 1_000 < last
    assert last - first < 6_000_000


def test_page_of_10_000_points_is_drawn_again_at_each_zoom(
    open_page: Open, record_property: Callable[[str, object], None]
) -> None:
    driver = open_page(timeline_page(_many(lanes=50, logs=10_000), {uid(0): 300 * "long "}))
    assert len(_lanes(driver)) == 50
    assert sum(_points(driver).values()) == 10_000
    times = driver.execute_async_script(_REDRAW)
    assert len(times) == 30
    record_property("median_redraw_ms", sorted(times)[15])
    record_property("slowest_redraw_ms", max(times))


def test_page_tells_apart_more_sources_than_there_are_colours(open_page: Open) -> None:
    points = [_point(FIRST, number, f"source {number % 30:02}") for number in range(75)]
    driver = open_page(timeline_page(Timeline([_fiber(FIRST)], points, 75), {}))
    sources = _points(driver)
    assert len(sources) == 22
    assert sources["source 00"] == 3
    assert sources["9 other sources"] == 18


_PLOT = """
const plot = Bokeh.documents[0].get_model_by_name('timeline')
const legend = plot.above.find(model => model.items)
"""
_REDRAW = (
    _PLOT
    + """
const done = arguments[0]
const {start, end} = plot.x_range
const times = []
async function zoom() {
  for (let step = 0; step < 30; step++) {
    const begin = performance.now()
    const part = (end - start) * step / 70
    plot.x_range.setv({start: start + part, end: end - part})
    await new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)))
    times.push(performance.now() - begin)
  }
  done(times)
}
zoom()
"""
)
_ALL = """
function all(selector, root) {
  const found = [...root.querySelectorAll(selector)]
  for (const element of root.querySelectorAll('*'))
    if (element.shadowRoot) found.push(...all(selector, element.shadowRoot))
  return found
}
"""


def _fiber(
    fiber_id: UUID,
    kind: str = "request",
    *,
    first: datetime = NOON,
    last: datetime | None = None,
    closed: bool = False,
    attributes: JsonValue = None,
) -> FiberRecord:
    last = last or max(first, at(9))
    row = fiber(1, kind, attributes, first=first, last=last, closed=closed)
    return row.model_copy(update={"fiber_id": fiber_id})


def _point(fiber_id: UUID, number: int, source: str = "web", *, seconds: float = 4) -> TimelinePoint:
    return TimelinePoint(fiber_id, at(seconds), source, uid(number))


def _many(lanes: int, logs: int) -> Timeline:
    chance = random.Random(3)
    fibers, points = [], []
    for number in range(lanes):
        begin, length = 20 * number, chance.uniform(10, 200)
        fibers.append(_fiber(UUID(int=number << 96), "request", first=at(begin), last=at(begin + length)))
        times = sorted(at(begin + chance.uniform(0, length)) for _ in range(logs // lanes))
        points += [
            TimelinePoint(fibers[-1].fiber_id, time, chance.choice(["web", "db", "mail"]), uid(0))
            for time in times
        ]
    return Timeline(fibers, points, len(points))


def _log(driver: WebDriver, kind: str) -> list[dict[str, str]]:
    """Return the log entries since the last call."""
    entries: list[dict[str, str]] = driver.get_log(kind)  # type: ignore[no-untyped-call]
    return entries


def _lanes(driver: WebDriver) -> list[str]:
    """Return the lanes that are shown, from the top."""
    found: list[str] = driver.execute_script(f"{_PLOT} return plot.y_range.factors")
    return found[::-1]


def _points(driver: WebDriver) -> dict[str, int]:
    """Return how many points of each entry of the legend are shown."""
    found: dict[str, int] = driver.execute_script(
        f"""{_PLOT}
        const points = plot.renderers.find(renderer => renderer.name == 'points')
        const counts = Object.fromEntries(legend.items.map(item => [item.label.value, 0]))
        for (const index of points.view.indices) {{
            counts[legend.items[points.data_source.data.group[index]].label.value] += 1
        }}
        return counts
        """
    )
    return found


def _range(driver: WebDriver) -> list[float]:
    """Return the first and the last time that is shown, in ms since 1970."""
    found: list[float] = driver.execute_script(f"{_PLOT} return [plot.x_range.start, plot.x_range.end]")
    return found


def _find_all(driver: WebDriver, selector: str) -> list[WebElement]:
    """Return the elements of a selector, in the shadow trees too, from the left."""
    found: list[WebElement] = driver.execute_script(f"{_ALL} return all(arguments[0], document)", selector)
    return sorted(found, key=lambda element: element.rect["x"])


def _click_legend(driver: WebDriver, name: str) -> None:
    (label,) = (label for label in _find_all(driver, ".bk-item .bk-label") if label.text == name)
    ActionChains(driver).move_to_element(label).click().perform()


def _place(driver: WebDriver, time: datetime) -> tuple[int, int]:
    """Return where a time is in the first lane, in pixels of the page."""
    x, y = driver.execute_script(
        f"""{_PLOT}
        const view = Bokeh.index.find_one(plot)
        const box = view.canvas_view.el.getBoundingClientRect()
        const [lane] = plot.y_range.factors.slice(-1)
        return [box.x + view.frame.x_scale.compute(arguments[0]), box.y + view.frame.y_scale.compute(lane)]
        """,
        time.timestamp() * 1_000,
    )
    return round(x), round(y)


def _hover(driver: WebDriver, time: datetime) -> None:
    """Move the mouse to a time in the first lane."""
    actions = ActionBuilder(driver)
    actions.pointer_action.move_to_location(*_place(driver, time))  # type: ignore[no-untyped-call]
    actions.perform()


def _tooltips(driver: WebDriver) -> str:
    """Return the texts of the tooltips."""
    return "\n".join(tip.text for tip in _find_all(driver, ".bk-Tooltip") if tip.is_displayed())


def _wheel(driver: WebDriver, delta: int) -> None:
    """Turn the wheel in the middle of the first lane."""
    x, y = _place(driver, at(1_800))
    ActionChains(driver).scroll_from_origin(ScrollOrigin.from_viewport(x, y), 0, delta).perform()

"""The page of a comparison, in a real browser."""

import re
from pathlib import Path
from typing import Any

import msgspec
from comparisons import cell, comparison
from playwright.sync_api import Browser, Page

from gateway.comparing.conclusions import groups_of
from gateway.comparing.page import page

CHARTS = ("latency", "throughput", "memory", "distribution")


class Opened:
    """A page, what it asked for and what it complained of."""

    def __init__(self, browser: Browser, file: Path, **how: Any) -> None:
        self.page: Page = browser.new_page(**how)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())


def opened(browser: Browser, tmp_path: Path, text: str, **how: Any) -> Opened:
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    return Opened(browser, file, **how)


PAINTED = """id => {
    const canvas = document.querySelector(`#${id} canvas`);
    const pixels = canvas && canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return pixels && pixels.some(byte => byte);
}"""


def test_the_charts_are_drawn_by_day_and_night_and_nobody_else_is_asked(browser: Browser, tmp_path: Path) -> None:
    found = opened(browser, tmp_path, page(comparison()), color_scheme="light")
    for scheme in ("light", "dark"):
        found.page.emulate_media(color_scheme=scheme)
        for chart in CHARTS:
            found.page.wait_for_selector(f"#{chart} canvas")
            assert found.page.evaluate(PAINTED, chart), chart  # once: the browser complains of who looks often
        ground = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", ground)))
        assert (brightness < 200) == (scheme == "dark")
    assert found.complaints == []
    assert [url for url in found.asked if not url.startswith(("file:", "data:"))] == []


def test_it_fits_on_a_phone_and_follows_its_window(browser: Browser, tmp_path: Path) -> None:
    found = opened(browser, tmp_path, page(comparison()), viewport={"width": 360, "height": 700})
    wide = "document.documentElement.scrollWidth"
    assert found.page.evaluate(wide) <= 360
    canvas = "document.querySelector('#latency canvas').getBoundingClientRect().width"
    narrow = found.page.evaluate(canvas)
    found.page.set_viewport_size({"width": 900, "height": 700})
    found.page.wait_for_function(f"{canvas} > {narrow}")
    assert found.page.evaluate(wide) <= 900


def test_all_figures_stand_in_the_table_and_the_verdict_before_it(browser: Browser, tmp_path: Path) -> None:
    made = comparison()
    found = opened(browser, tmp_path, page(made), java_script_enabled=False)  # what matters needs no script
    shown = found.page.inner_text("table")
    for title, rows in groups_of(made):
        assert title in shown
        for row in rows:
            assert all(text in shown for text in row)
    verdict = found.page.inner_text(".verdict")
    assert all(text in verdict for text in (made.verdict.speed, made.verdict.size, made.verdict.answers))


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;'"


def test_a_models_name_is_text_and_nothing_else(browser: Browser, tmp_path: Path) -> None:
    found = opened(browser, tmp_path, page(comparison(a=HOSTILE, b="<!--<script>")))
    found.page.wait_for_selector("#memory canvas")
    assert "owned" in found.page.title()
    assert found.page.title() != "owned"  # it is in the name, as text
    assert found.page.inner_text(".model.a b") == f"{HOSTILE}/1"
    assert found.page.locator("img").count() == 0
    assert found.complaints == []
    assert HOSTILE in found.page.inner_text("#memory .u-legend")


def test_a_script_that_got_in_would_not_be_run(browser: Browser, tmp_path: Path) -> None:
    text = page(comparison()).replace("</main>", "<script>document.title = 'owned'</script></main>")
    found = opened(browser, tmp_path, text)
    found.page.wait_for_selector("#memory canvas")
    assert found.page.title() == "mine_torch and mine_keras"
    assert any("Content Security Policy" in complaint for complaint in found.complaints)


def test_a_single_place_is_drawn_too(browser: Browser, tmp_path: Path) -> None:
    found = opened(browser, tmp_path, page(comparison(cells=[cell(1, 1)], figures=[], accuracy=None)))
    found.page.wait_for_selector("#distribution canvas")
    assert not found.page.is_visible("#memory")
    assert found.complaints == []


def test_a_machine_that_only_asked_is_called_that() -> None:
    here = comparison()
    elsewhere = comparison(settings=msgspec.structs.replace(here.settings, load_before=None))
    assert ", Linux, 2 CPUs" in page(here)
    assert ", asked from Linux, 2 CPUs" in page(elsewhere)
    assert elsewhere.warnings == []


def test_the_page_names_no_other_host() -> None:
    text = page(comparison())
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)|@import|url\(""", text)
    assert len(text) < 200_000

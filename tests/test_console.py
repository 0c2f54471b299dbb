"""The console in a real browser: everything that people do with it."""

import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparisons import comparison
from playwright.sync_api import Browser, BrowserContext, Page, expect

from gateway.comparing.page import page as report_page

NOTHING = "\u2013"
"""What stands where there is no number."""
ARTIFACTS = os.environ.get("TESTS_ARTIFACTS")
"""A directory where the pictures are kept."""
SECONDS = 20_000  # ms that anything may take to appear
expect.set_options(timeout=SECONDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server expects a report of `gateway compare`."""
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def server(start_gateway: Any, folder: Path) -> Iterator[Any]:
    def two_versions(store: Path) -> None:
        shutil.copytree(store / "mlp" / "3", store / "mlp" / "4")
        with (store / "mlp" / "model.yaml").open("a") as file:
            file.write("version_policy: {latest: 2}\n")

    models = ["digits_torch", "digits_tensorflow", "text_tensorflow", "mlp", "images_torch", "no_archive"]
    with start_gateway(models, "--compare-report", str(folder), prepare=two_versions) as gateway:
        yield gateway


class Visitor:
    """A page, and what went wrong on it."""

    def __init__(self, context: BrowserContext, url: str, path: str = "/console") -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(SECONDS)
        self.wrong: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url, url))
        self.page.goto(url + path)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _asked(self, address: str, url: str) -> None:
        if not address.startswith((url + "/", "data:", "blob:")):
            self.wrong.append(f"a request to {address}")

    def row(self, version: str) -> Any:
        return self.page.locator("#versions tr", has=self.page.get_by_text(version, exact=True))

    def picture(self, name: str) -> None:
        if ARTIFACTS:
            Path(ARTIFACTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(ARTIFACTS) / f"{name}.png", full_page=True)

    def choose(self, model: str) -> None:
        """Have the form ask this model."""
        self.page.select_option("#try-model", model)
        expect(self.page.locator("#try-inputs")).to_have_attribute("data-model", model)

    def draw_a_zero(self) -> None:
        pad = self.page.get_by_label("Draw image")
        expect(self.page.locator("#chart-stages canvas, #chart-rate canvas, #versions tr").first).to_be_visible()
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        assert box is not None
        around = [(0.5 + 0.2 * math.sin(turn), 0.5 - 0.35 * math.cos(turn)) for turn in np.linspace(0, 2 * math.pi, 30)]
        mouse = self.page.mouse
        for step, (x, y) in enumerate(around):
            mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if step == 0:
                mouse.down()
        mouse.up()


@pytest.fixture
def visit(browser: Browser, server: Any) -> Iterator[Any]:
    """Opens the console; at the end nothing may have gone wrong on it."""
    opened: list[tuple[BrowserContext, Visitor]] = []

    def visit(**options: Any) -> Visitor:
        context = browser.new_context(**options)
        visitor = Visitor(context, server.url)
        opened.append((context, visitor))
        return visitor

    yield visit
    for context, visitor in opened:
        context.close()
        assert visitor.wrong == []


def test_the_front_door_leads_to_the_models_of_both_frameworks(browser: Browser, server: Any) -> None:
    context = browser.new_context()
    visitor = Visitor(context, server.url, "/")
    expect(visitor.row("digits_torch/1")).to_contain_text("PyTorch")
    expect(visitor.row("digits_torch/1")).to_contain_text("READY")
    expect(visitor.row("digits_tensorflow/1")).to_contain_text("TensorFlow")
    expect(visitor.row("digits_tensorflow/1")).to_contain_text("MB")
    expect(visitor.row("no_archive/1")).to_contain_text("FAILED")
    expect(visitor.page.locator("#budgets")).to_contain_text("cpu:")
    expect(visitor.page.locator("#connection")).to_have_text("live")
    context.close()
    assert visitor.wrong == []


def test_a_drawn_digit_is_answered_by_both_twins(visit: Any) -> None:
    visitor = visit()
    page = visitor.page
    visitor.choose("digits_torch")
    expect(page.locator("#try-twin")).to_have_value("digits_tensorflow")
    visitor.draw_a_zero()
    page.click("#try-send")
    expect(page.locator("#try-note")).to_have_text("")
    answers = page.locator(".answer")
    expect(answers).to_have_count(2)
    expect(answers.nth(0).locator(".top-class")).to_have_text("zero")
    expect(answers.nth(1).locator(".top-class")).to_have_text("0")
    expect(page.locator("#try-verdict")).to_contain_text("Both say the same.")
    assert answers.locator(".score").count() == 20
    visitor.picture("console-digit")


def test_the_charts_move_with_the_requests(visit: Any, server: Any) -> None:
    page = visit().page
    page.wait_for_selector("#versions tr")
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}
    legend = page.locator("#chart-rate .u-legend")
    for _ in range(200):
        assert server.http.post("/v2/models/mlp/infer", json=body).status_code == 200
        if legend.get_by_text("mlp/4").count():
            break
        page.wait_for_timeout(50)
    expect(legend).to_contain_text("mlp/4")
    assert page.locator("#chart-rate canvas").count() == 1
    expect(page.locator("#chart-stages .u-legend")).to_contain_text("compute")
    expect(page.locator("#chart-latency .u-legend")).to_contain_text("p99")
    expect(page.locator("#chart-stages")).to_have_attribute("aria-label", re.compile("Mean time by stage now"))
    expect(page.locator("#latency-of")).to_have_text("of mlp/4")


FIGURES = """async () => {
  const { activity, bytes, quantile, short } = await import("/console/static/console/figures.js");
  const bounds = [0.001, 0.01, 0.1];
  const at = (requests, failed, durations, stages) => ({ requests, failed, durations, stages });
  return {
    rates: activity(at(10, 1, [5, 5, 0, 0], [1, 2]), at(30, 2, [5, 15, 10, 0], [3, 2]), 2),
    unknown: [activity(undefined, at(10, 1, [1, 0, 0, 0], [1, 2]), 1), activity({}, {}, 1),
              activity(at(10, 0, [1, 0, 0, 0], [1]), at(3, 0, [1, 0, 0, 0], [1]), 1)],
    first: activity({}, at(3, 0, [3, 0, 0, 0], [0.003]), 1),
    quantiles: [quantile(0.5, [0, 10, 0, 0], bounds), quantile(0.99, [90, 0, 10, 0], bounds),
                quantile(0.5, [0, 0, 0, 4], bounds), quantile(0.5, [0, 0, 0, 0], bounds)],
    texts: [short(1234.5), short(0.0123456), short(null), bytes(23_400_000)],
  };
}"""


def test_rates_and_quantiles_are_those_of_prometheus(visit: Any) -> None:
    found = visit().page.evaluate(FIGURES)
    assert found["rates"]["rate"] == 10
    assert found["rates"]["errors"] == 0.5
    assert found["rates"]["durations"] == [0, 10, 10, 0]
    assert found["rates"]["stages"] == pytest.approx([100, 0])  # ms of the 20 requests that were computed
    assert found["unknown"] == [None, None, None]
    assert (found["first"]["rate"], found["first"]["stages"]) == (3, pytest.approx([1]))
    assert found["quantiles"] == [pytest.approx(5.5), pytest.approx(91), pytest.approx(100), None]
    assert found["texts"] == ["1,235", "0.0123", NOTHING, "23.4 MB"]


def test_a_key_dialog_that_is_left_changes_nothing(visit: Any, helpers: Any) -> None:
    page = visit().page
    page.get_by_role("button", name="API key").click()
    page.get_by_label("Key", exact=True).fill("gw_key")
    page.get_by_role("button", name="Use").click()
    helpers.until(lambda: page.evaluate("sessionStorage.length") == 1, 10)
    page.get_by_role("button", name="API key").click()
    page.keyboard.press("Escape")
    assert page.evaluate("sessionStorage.getItem('gateway-api-key')") == "gw_key"
    page.get_by_role("button", name="API key").click()
    page.get_by_role("button", name="Forget it").click()
    helpers.until(lambda: page.evaluate("sessionStorage.length") == 0, 10)
    expect(page.locator("#connection")).to_have_text("live")


def test_what_has_the_focus_keeps_it_under_load(visit: Any, server: Any) -> None:
    visitor = visit()
    button = visitor.page.get_by_role("button", name="Unload digits_torch")
    button.focus()
    row = visitor.row("digits_torch/1").locator("[data-cell=rate]")
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}]}
    for _ in range(200):
        assert server.http.post("/v2/models/digits_torch/infer", json=body).status_code == 200
        if row.inner_text() not in ("0", NOTHING):
            break
        visitor.page.wait_for_timeout(50)
    expect(row).not_to_have_text("0")
    expect(button).to_be_focused()


def test_a_model_is_unloaded_and_loaded_again(visit: Any, server: Any) -> None:
    visitor = visit()
    page = visitor.page
    page.get_by_role("button", name="Unload digits_torch").click()
    expect(visitor.row("digits_torch/1")).to_contain_text("UNLOADED")
    expect(page.locator("#try-model option[value=digits_torch]")).to_have_count(0)
    page.get_by_role("button", name="Load digits_torch", exact=True).click()
    expect(visitor.row("digits_torch/1")).to_contain_text("READY")
    expect(page.locator("#models-note")).to_have_text("Load digits_torch: done")
    assert server.versions()["digits_torch"] == "READY"


def test_another_version_is_made_the_default(visit: Any, server: Any) -> None:
    visitor = visit()
    three, four = (visitor.row(version).locator("[data-cell=name]") for version in ("mlp/3", "mlp/4"))
    expect(four).to_contain_text("default")
    visitor.page.get_by_role("button", name="Make default mlp version 3").click()
    expect(three).to_contain_text("default")
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}
    assert server.http.post("/v2/models/mlp/infer", json=body).json()["model_version"] == "3"
    visitor.page.get_by_role("button", name="Make default mlp version 4").click()
    expect(four).to_contain_text("default")


def test_a_load_that_fails_says_why(visit: Any, server: Any) -> None:
    visitor = visit()
    expect(visitor.row("no_archive/1")).to_contain_text("FAILED")
    visitor.page.get_by_role("button", name="Load no_archive", exact=True).click()
    expect(visitor.page.locator("#models-note")).to_contain_text("failed to load")
    # What the gateway answers the browser reports.
    visitor.wrong = [each for each in visitor.wrong if "responded with a status" not in each]
    assert server.versions()["no_archive"] == "FAILED"


def test_text_numbers_and_files_are_asked_too(visit: Any, images: dict[str, dict[str, bytes]]) -> None:
    visitor = visit()
    page = visitor.page
    visitor.choose("text_tensorflow")
    page.get_by_label("text, one text a line").fill("Where does your brother live?\nOù est la bibliothèque ?")
    page.click("#try-send")
    expect(page.locator(".answer pre").first).to_contain_text('["en","fr"]')
    visitor.choose("mlp")
    page.get_by_label("x, numbers as JSON").fill(str([[0.5] * 16, [1] * 16]))
    page.click("#try-send")
    expect(page.locator(".answer")).to_contain_text("y FP32 [2,4]")
    page.get_by_label("x, numbers as JSON").fill("[1, 2")
    page.click("#try-send")
    expect(page.locator("#try-note")).to_contain_text("x is not JSON")
    visitor.choose("images_torch")
    page.get_by_label("File, as it is").check()
    name, data = next((name, data) for name, data in images["good"].items() if name.endswith(".png"))
    file = {"name": name, "mimeType": "image/png", "buffer": data}
    page.locator("#try-inputs input[type=file]").set_input_files(file)
    page.click("#try-send")
    expect(page.locator(".answer")).to_contain_text("class")
    assert page.locator(".answer").count() == 1  # no other model takes images


def test_it_is_used_by_keyboard_in_the_dark_on_a_phone(visit: Any) -> None:
    visitor = visit(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    page = visitor.page
    page.get_by_label("Draw image").focus()
    for key in ("ArrowDown",) * 8:
        page.keyboard.press(key)
    page.keyboard.press("Tab")  # Clear
    page.keyboard.press("Tab")
    expect(page.locator("#try-send")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 16, 18)"
    visitor.picture("console-phone")


def test_the_report_of_a_comparison_is_shown_with_its_charts(visit: Any, folder: Path) -> None:
    expect(visit().page.locator("#compare-report")).to_contain_text("gateway compare MODEL_A MODEL_B")
    (folder / "report.html").write_text(report_page(comparison()))
    visitor = visit()
    report = visitor.page.frame_locator("#compare-report iframe")
    expect(report.locator("h1")).to_contain_text("or")
    expect(report.locator("#latency canvas")).to_be_visible()
    expect(report.locator("#throughput canvas")).to_be_visible()
    assert report.locator(".u-legend").count() >= 2


def test_a_report_that_is_none_is_shown_without_power(browser: Browser, server: Any, folder: Path) -> None:
    """Its scripts are not the gateway's, so they do not run; the frame could not reach the page's key anyway."""
    (folder / "report.html").write_text("<h1>Hello</h1><script>parent.document.title = 'mine'</script>")
    context = browser.new_context()
    visitor = Visitor(context, server.url)
    expect(visitor.page.frame_locator("#compare-report iframe").locator("h1")).to_have_text("Hello")
    assert visitor.page.title() == "Model serving gateway"
    context.close()
    (folder / "report.html").unlink()
    assert any("Content Security Policy" in each for each in visitor.wrong)


def test_with_keys_the_page_asks_for_one(
    browser: Browser, start_gateway: Any, helpers: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    viewer = helpers.keys(keys, "add", "viewer", "--scope", "metrics", "--scope", "infer").split()[-1]
    with start_gateway(["mlp"], "--keys-file", str(keys)) as gateway:
        context = browser.new_context()
        visitor = Visitor(context, gateway.url)
        page = visitor.page
        expect(page.locator("#connection")).to_contain_text("an API key is needed")
        page.get_by_label("Key", exact=True).fill(viewer)
        page.get_by_role("button", name="Use").click()
        expect(visitor.row("mlp/3")).to_contain_text("READY")
        page.get_by_role("button", name="Unload mlp").click()
        expect(page.locator("#models-note")).to_contain_text("this API key has not the scope 'admin'")
        expect(visitor.row("mlp/3")).to_contain_text("READY")
        assert viewer not in page.url
        # Who looks does not keep the gateway from ending.
        assert gateway.stop() == 0
        expect(page.locator("#connection")).to_contain_text("no connection")
        context.close()
        assert [each for each in visitor.wrong if "Failed to load resource" not in each and "ERR_" not in each] == []

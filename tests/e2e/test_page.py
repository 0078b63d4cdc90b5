"""The page in a real browser: draw a box, press the button, see the finds, download them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import skimage.data
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from scripts.demo import COIN
from tests.e2e.conftest import Service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs the program chromium")


@pytest.fixture
def page(running: Service) -> Iterator[Page]:
    """A page without a past, which fails the test when the browser complains of anything."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
        expected = "status of 422"  # the browser notes answers that a test provokes
        assert [c for c in complaints if expected not in c] == []
        browser.close()


@pytest.fixture
def coins(tmp_path: Path) -> Path:
    path = tmp_path / "coins.png"
    Image.fromarray(skimage.data.coins()).save(path)  # type: ignore[no-untyped-call]
    return path


def _drag(page: Page, box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    frame = page.locator("#canvas").bounding_box()
    assert frame
    scale = frame["width"] / size[0]
    page.mouse.move(frame["x"] + box[0] * scale, frame["y"] + box[1] * scale)
    page.mouse.down()
    page.mouse.move(frame["x"] + box[2] * scale, frame["y"] + box[3] * scale, steps=3)
    page.mouse.up()


def test_a_box_finds_all_and_the_result_is_downloaded(
    running: Service, page: Page, coins: Path
) -> None:
    page.goto(running.url)
    page.set_input_files("#file", coins)
    page.fill("#label", "coin")
    assert page.locator("#find").is_disabled(), "not before there is a box"
    page.locator("#canvas").scroll_into_view_if_needed()
    _drag(page, COIN, (384, 303))
    page.click("#find")
    page.wait_for_selector("#download:visible", timeout=30_000)
    assert "24 found" in page.locator("#status").inner_text()
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "annotations-coco.json"
    coco = json.loads(Path(download.value.path()).read_text())
    assert len(coco["annotations"]) == 24
    assert page.context.cookies() == []
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_a_refusal_is_told_in_words(running: Service, page: Page, coins: Path) -> None:
    """The image is damaged behind its header: only the worker can see it."""
    page.goto(running.url)
    page.set_input_files("#file", coins)
    page.wait_for_selector("#stage:visible")
    page.evaluate("view.file = view.file.slice(0, 20000, 'image/png')")
    _drag(page, COIN, (384, 303))
    page.click("#find")
    page.wait_for_selector("#status.error", timeout=30_000)
    assert "damaged" in page.locator("#status").inner_text()


def test_the_docs_page_lists_the_operations(running: Service, page: Page) -> None:
    page.goto(running.url + "/docs")
    page.wait_for_selector("#operations details")
    assert page.locator("#operations details").count() >= 10
    page.locator("summary").first.click()
    assert page.locator("#operations details[open]").count() == 1

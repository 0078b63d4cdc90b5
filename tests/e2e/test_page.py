"""The page in a real browser: show what is meant, see the finds, correct them, take them along."""

import json
import math
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import skimage.data
from PIL import Image
from playwright.sync_api import Browser, Page, Route, sync_playwright

from jobs import formats
from jobs.settings import Settings
from scripts.demo import COIN
from tests.contract.test_accounts import make_key
from tests.e2e.conftest import Service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="needs the program chromium: apt-get install chromium"
)
SIZE = (384, 303)
OTHER_COIN = (24.0, 95.0, 70.0, 143.0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(running: Service, browser: Browser) -> Iterator[Page]:
    """The page without a past. Fails the test when the browser complains of anything, a broken
    content security policy for one, or when anything goes to anybody but the service."""
    with browser.new_context(viewport={"width": 1100, "height": 900}) as context:
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: elsewhere.append(request.url))
        elsewhere: list[str] = []
        page.goto(running.url)
        page.wait_for_selector("#format option", state="attached")
        yield page
        expected = ("status of 4", "ERR_FAILED")  # the browser notes what a test provokes
        assert [c for c in complaints if not any(text in c for text in expected)] == []
        assert [u for u in elsewhere if not u.startswith((running.url, "blob:"))] == []


@pytest.fixture
def coins(tmp_path: Path) -> Path:
    path = tmp_path / 'coins "é" & co.png'
    Image.fromarray(skimage.data.coins()).save(path)  # type: ignore[no-untyped-call]
    return path


def _open(page: Page, file: Path, label: str = "coin") -> None:
    page.set_input_files("#file", file)
    page.wait_for_selector("#stage:visible")
    page.fill("#label", label)


def _frame(page: Page) -> tuple[float, float, float]:
    page.locator("#canvas").scroll_into_view_if_needed()
    frame = page.locator("#canvas").bounding_box()
    assert frame
    return frame["x"], frame["y"], frame["width"] / SIZE[0]


def _drag(page: Page, box: tuple[float, float, float, float]) -> None:
    x, y, scale = _frame(page)
    page.mouse.move(x + box[0] * scale, y + box[1] * scale)
    page.mouse.down()
    page.mouse.move(x + box[2] * scale, y + box[3] * scale, steps=3)
    page.mouse.up()


def _click(page: Page, box: tuple[float, float, float, float]) -> None:
    x, y, scale = _frame(page)
    page.mouse.click(x + (box[0] + box[2]) / 2 * scale, y + (box[1] + box[3]) / 2 * scale)


def _find(page: Page) -> None:
    page.click("#find")
    page.wait_for_selector("#form[aria-busy=false]", timeout=60_000)


def _download(page: Page, kind: str) -> tuple[str, str]:
    page.select_option("#format", kind)
    with page.expect_download() as download:
        page.click("#download")
    return download.value.suggested_filename, Path(download.value.path()).read_text()


def _state(page: Page, expression: str) -> Any:
    """What an expression on the page's `view` comes to."""
    return page.evaluate(f"import('/pages/state.js').then(({{ view }}) => {expression})")


def _sent(page: Page) -> list[Any]:
    """The requests of the jobs that the page submits from now on."""
    sent: list[Any] = []

    def note(route: Route) -> None:
        body = route.request.post_data_buffer or b""
        sent.append(json.loads(body.partition(b'name="request"\r\n\r\n')[2].partition(b"\r\n")[0]))
        route.continue_()

    page.route("**/v1/jobs", note)
    return sent


def test_a_box_finds_all_and_the_result_is_downloaded(page: Page, coins: Path) -> None:
    _open(page, coins)
    assert page.locator("#find").is_disabled(), "not before there is a box"
    _drag(page, COIN)
    _find(page)
    assert "24 found" in page.inner_text("#status")
    name, text = _download(page, "coco")
    assert name.endswith("-coco.json")
    coco = json.loads(text)
    assert len(coco["annotations"]) == 24
    assert coco["images"][0]["file_name"] == coins.name, "put in by the page: it is never sent"
    assert page.context.cookies() == []
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_the_slider_decides_what_is_downloaded_in_any_kind_of_format(
    page: Page, coins: Path
) -> None:
    """Not in each format: the browser asks its user before an eleventh file."""
    _open(page, coins)
    _drag(page, COIN)
    _find(page)
    scores = _state(page, "view.finds.map((find) => find.score)")
    middle = math.floor(100 * sorted(scores)[len(scores) // 2]) / 100  # a step of the slider
    page.locator("#threshold").fill(str(middle))
    left = sum(score >= middle for score in scores)
    assert 0 < left < 24
    assert page.inner_text("#count") == f"{left} of {len(scores)} finds"
    assert len(json.loads(_download(page, "coco")[1])["annotations"]) == left
    for kind in ("mayfly", "yolo", "voc", "label-studio", "csv"):
        name, text = _download(page, kind)
        assert name.endswith(f".{formats.FORMATS[kind].extension}")
        assert "image-" not in text, "the stand-in for the name"
        assert len(text) > 100


def test_a_wrong_find_is_removed_renamed_or_becomes_a_box_that_is_not_meant(
    page: Page, coins: Path
) -> None:
    sent = _sent(page)
    _open(page, coins)
    _drag(page, COIN)
    _find(page)
    _click(page, OTHER_COIN)
    assert "score" in page.inner_text("#chosen-text")
    page.keyboard.press("Delete")
    assert page.inner_text("#count") == "23 of 23 finds"
    page.click("#undo")
    assert page.inner_text("#count") == "24 of 24 finds"

    _click(page, OTHER_COIN)
    page.fill("#label", "button")
    page.click("#relabel")
    labels = {find["label"] for find in json.loads(_download(page, "mayfly")[1])["annotations"]}
    assert labels == {"coin", "button"}
    assert page.locator(".chip").all_inner_texts() == ["coin 23", "button 1"]

    _click(page, OTHER_COIN)
    page.click("#as-negative")
    _find(page)
    assert [prompt["negative"] for prompt in sent[-1]["prompts"]] == [False, True]


def test_several_labels_and_boxes_that_are_not_meant(page: Page, coins: Path) -> None:
    sent = _sent(page)
    _open(page, coins, "large")
    _drag(page, (306, 13, 366, 76))
    page.fill("#label", "small")
    _drag(page, COIN)
    page.keyboard.press("n")
    _drag(page, OTHER_COIN)
    _find(page)
    prompts = [(prompt["label"], prompt["negative"]) for prompt in sent[0]["prompts"]]
    assert prompts == [("large", False), ("small", False), ("small", True)]
    assert {find["label"] for find in _state(page, "view.finds")} == {"large", "small"}


def test_it_can_be_used_with_the_keyboard_alone(page: Page, coins: Path) -> None:
    """A box from the middle of the image, then Enter in the form."""
    _open(page, coins)
    page.focus("#canvas")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Space")
    ((x0, y0, x1, y1),) = _state(page, "view.prompts.map((prompt) => prompt.box)")
    assert (x1 - x0, y1 - y0) == pytest.approx((57.6, 57.6), abs=0.3)
    page.keyboard.press(".")
    assert "example" in page.evaluate("document.getElementById('chosen-text').textContent")
    page.keyboard.press("Delete")
    assert _state(page, "view.prompts.length") == 0
    page.keyboard.press("Control+z")
    page.keyboard.press("f")
    page.wait_for_selector("#results:visible", timeout=60_000)


def test_examples_are_carried_to_the_next_image(page: Page, coins: Path, tmp_path: Path) -> None:
    sent = _sent(page)
    _open(page, coins)
    _drag(page, COIN)
    _find(page)
    turned = tmp_path / "turned.png"
    Image.open(coins).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(turned)
    page.set_input_files("#file", turned)
    page.wait_for_selector("#references:visible")
    _find(page)
    assert [prompt["image"] for prompt in sent[1]["prompts"]] == ["example0"]
    assert _state(page, "view.finds.length") > 15
    page.click("#forget-references")
    assert page.locator("#find").is_disabled()


def test_points_outputs_and_masks_where_a_model_has_them(page: Page, coins: Path) -> None:
    """No model here has all of it: the answers are changed on their way to the page."""

    def models(route: Route) -> None:
        answer = route.fetch().json()
        answer["models"][0] |= {"prompts": ["box", "point"], "outputs": ["box", "mask"]}
        route.fulfill(json=answer)

    def refuse(route: Route) -> None:
        sent.append(route.request.post_data_buffer or b"")
        route.fulfill(status=422, json={"detail": "No points here."})

    sent: list[bytes] = []
    page.route("**/v1/models", models)
    page.reload()
    page.wait_for_selector("#format option", state="attached")
    _open(page, coins)
    page.check("#outputs input[value=mask]")
    page.keyboard.press("p")
    page.click("[data-tool=point]")
    _click(page, COIN)
    page.route("**/v1/jobs", refuse)
    _find(page)
    assert "No points here." in page.inner_text("#status")
    request = json.loads(sent[0].partition(b'name="request"\r\n\r\n')[2].partition(b"\r\n")[0])
    assert request["outputs"] == ["box", "mask"]
    assert [prompt["type"] for prompt in request["prompts"]] == ["point"]
    # four pixels of background, four of mask, four of background: the middle of three columns
    page.evaluate("""async () => {
        const { maskPath } = await import("/pages/canvas.js");
        const path = maskPath({ size: [4, 3], counts: "444" });
        const pen = new OffscreenCanvas(3, 4).getContext("2d");
        pen.fill(path);
        window.covered = [...pen.getImageData(0, 0, 3, 4).data].filter((_, at) => at % 4 === 3);
    }""")
    covered = page.evaluate("window.covered.map((alpha) => alpha === 255)")
    assert covered == [False, True, False] * 4


def test_the_kind_of_match_and_the_suggested_score(page: Page, coins: Path) -> None:
    counts = []
    _open(page, coins)
    _drag(page, COIN)
    for match in ("strict", "kind"):
        page.select_option("#match", match)
        _find(page)
        assert _state(page, "view.finds.length") > 1
        counts.append(_state(page, "view.finds.reduce((sum, find) => sum + find.score, 0)"))
    assert counts[0] < counts[1]
    suggested = page.locator("#suggested")
    assert suggested.inner_text().startswith("Suggested: 0.")
    suggested.click()
    value = _state(page, "view.result.suggested_min_score")
    assert abs(float(page.input_value("#threshold")) - value) < 0.006


def test_what_lies_turned_is_found_unless_it_is_not_wished(page: Page, tmp_path: Path) -> None:
    sure = "view.finds.filter(({ score }) => score >= 0.5).length"
    picture = Image.new("RGB", SIZE, "#d9d4c7")
    coffee = skimage.data.coffee()  # type: ignore[no-untyped-call]
    cup = Image.fromarray(coffee[90:310, 160:420]).resize((78, 66))
    for at, turn in (((40, 30), 0), ((170, 40), 90), ((280, 50), 0), ((60, 200), 180)):
        picture.paste(cup.rotate(turn, expand=True), at)
    picture.save(tmp_path / "cups.png")
    _open(page, tmp_path / "cups.png")
    _drag(page, (40, 30, 118, 96))
    _find(page)
    assert _state(page, sure) == 4
    page.uncheck("#turned")
    _find(page)
    assert _state(page, sure) == 2


def test_a_refusal_is_told_in_words(page: Page, coins: Path) -> None:
    """The image is damaged behind its header: only the worker can see it."""
    _open(page, coins)
    _state(page, "view.file = view.file.slice(0, 20000, 'image/png')")
    _drag(page, COIN)
    _find(page)
    assert page.locator("#status.error").count() == 1
    assert "damaged" in page.inner_text("#status")


def test_a_file_that_is_no_image_is_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    page.set_input_files("#file", tmp_path / "notes.png")
    page.wait_for_selector("#status.error")
    assert "Choose a JPEG" in page.inner_text("#status")


def test_a_lost_connection_is_told_and_costs_nothing(page: Page, coins: Path) -> None:
    _open(page, coins)
    _drag(page, COIN)
    page.route("**/v1/jobs", lambda route: route.abort())
    _find(page)
    assert "check the connection" in page.inner_text("#status")
    page.unroute("**/v1/jobs")
    _find(page)
    assert "24 found" in page.inner_text("#status")


def test_purposes_and_notice_stand_beside_the_upload(page: Page) -> None:
    assert "for nothing else" in page.inner_text("#purpose")
    assert "2 minutes" in page.inner_text("#purpose")
    page.select_option("#language", "de")
    page.wait_for_selector("#short[lang=de]")
    assert "2 Minuten" in page.inner_text("#purpose")
    page.click("#notice")
    assert page.locator("h1").inner_text() == "Datenschutzerklärung"


def test_selections_are_kept_on_consent_and_forgotten_at_a_click(page: Page) -> None:
    """The browser takes the cookie on plain loopback, although it is Secure."""
    page.select_option("#format", "voc", force=True)
    assert page.context.cookies() == [], "nothing before the visitor agrees"
    page.click("#agree")
    page.wait_for_selector("#withdraw:visible")
    (cookie,) = page.context.cookies()
    assert (cookie["name"], cookie["secure"], cookie["httpOnly"]) == ("__Host-mayfly", True, True)
    assert cookie["sameSite"] == "Strict"
    assert page.evaluate("document.cookie") == ""
    with page.expect_response("**/v1/privacy/consent"):
        page.select_option("#format", "csv", force=True)
    page.reload()
    page.wait_for_selector("#withdraw:visible")
    page.wait_for_selector("#format option", state="attached")
    assert page.input_value("#format") == "csv"
    page.click("#withdraw")
    page.wait_for_selector("#agree:visible")
    assert page.context.cookies() == []


def test_a_changed_notice_is_shown_once(page: Page) -> None:
    page.click("#agree")
    page.wait_for_selector("#withdraw:visible")
    (cookie,) = page.context.cookies()
    old = page.evaluate(
        '(value) => btoa(atob(value).replace(/"notice":"\\w+"/, \'"notice":"0"\'))',
        cookie["value"].strip('"').replace("-", "+").replace("_", "/"),
    )
    page.context.add_cookies([{**cookie, "value": old.replace("+", "-").replace("/", "_")}])  # type: ignore[typeddict-item]
    page.reload()
    page.wait_for_selector("#changed:visible")
    assert "has changed" in page.inner_text("#changed")
    page.reload()
    page.wait_for_selector("#withdraw:visible")
    page.wait_for_timeout(200)
    assert page.locator("#changed").is_hidden()


def test_a_browsers_no_is_not_asked_again(running: Service, browser: Browser) -> None:
    with browser.new_context(extra_http_headers={"Sec-GPC": "1"}) as context:
        page = context.new_page()
        page.goto(running.url)
        page.wait_for_selector("#format option", state="attached")
        page.wait_for_selector("#short:not(:empty)")
        assert page.locator("#consent").is_hidden()


def test_nothing_sticks_out_and_everything_can_be_read(
    running: Service, page: Page, coins: Path
) -> None:
    """No sideways scrolling at any width; text on buttons has a contrast of at least 4.5."""
    _open(page, coins)
    _drag(page, COIN)
    for width, scheme in ((1280, "light"), (768, "dark"), (360, "light")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=cast(Any, scheme))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for button in ("#find", "[data-tool=negative]"):
            assert page.evaluate(CONTRAST, button) >= 4.5, (button, scheme)
        if folder := os.environ.get("SCREENSHOTS"):  # to look at
            page.screenshot(path=f"{folder}/page-{width}-{scheme}.png", full_page=True)
    for path in ("/docs", "/privacy", "/privacy?lang=de"):
        page.goto(running.url + path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path


CONTRAST = """(selector) => {
    const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const paint = (...colours) => {
        pen.reset();
        for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
        return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (pixel) => {
        const [r, g, b] = pixel.map((v) => v / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const style = getComputedStyle(document.querySelector(selector));
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const under = [dark ? "#121212" : "#fff", style.backgroundColor];
    const [a, b] = [light(paint(...under)), light(paint(...under, style.color))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


def test_the_notice_lets_visitors_agree_and_withdraw(page: Page, running: Service) -> None:
    page.goto(running.url + "/privacy?lang=de")
    page.click("#agree")
    page.wait_for_selector("#withdraw:visible")
    assert "aufbewahrt, seit" in page.inner_text("#consent")
    assert len(page.context.cookies()) == 1
    page.click("#withdraw")
    page.wait_for_selector("#agree:visible")
    assert page.inner_text("#consent") == "In Ihrem Browser ist nichts gespeichert."
    assert page.context.cookies() == []


def _held(running: Service, key: str) -> Any:
    """What the service holds about who has the key; None when it does not know the key."""
    asking = urllib.request.Request(f"{running.url}/v1/privacy/data", headers={"X-API-Key": key})
    try:
        with urllib.request.urlopen(asking, timeout=5) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return None
        raise


def test_rights_are_used_from_the_notice(page: Page, running: Service) -> None:
    """See, take along, correct, object, erase: the service does each for the key's account."""
    key = make_key(Settings(data_dir=running.data))
    deadline = time.monotonic() + 30
    while _held(running, key) is None:  # the front door looks every two seconds
        assert time.monotonic() < deadline
        time.sleep(0.1)
    page.goto(running.url + "/privacy")
    page.fill("#key", key)
    page.click("#see button[type=submit]")
    page.wait_for_selector("#correct:visible")
    assert "coins@example.org" in page.inner_text("#data")
    with page.expect_download() as download:
        page.click("#take")
    taken = json.loads(Path(download.value.path()).read_text())
    assert taken["account"] == _held(running, key)["account"]
    page.fill("#account-contact", "new@example.org")
    page.click("#correct button")
    page.wait_for_selector("#status:has-text('Saved.')")
    page.check("#no-logs")
    with page.expect_response("**/objections"):
        page.click("#object button")
    page.wait_for_selector("#status:has-text('Saved.')")
    now = _held(running, key)["account"]
    assert now["contact"] == "new@example.org"
    assert (now["no_logs"], now["no_statistics"]) == (True, False)
    page.check("#erase-account")
    page.click("#erase > button")
    page.click("#no")
    assert _held(running, key), "not before it is confirmed"
    page.click("#erase > button")
    page.click("#yes")
    page.wait_for_selector("#status:has-text('Erased.')")
    assert '"account": true' in page.inner_text("#data")
    assert _held(running, key) is None


def test_the_docs_page_lists_the_operations(page: Page, running: Service) -> None:
    page.goto(running.url + "/docs")
    page.wait_for_selector("#operations details")
    assert page.locator("#operations details").count() >= 10
    page.locator("summary").first.click()
    assert page.locator("#operations details[open]").count() == 1

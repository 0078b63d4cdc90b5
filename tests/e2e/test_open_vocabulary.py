"""Models that read words, as real processes serve them: over HTTP, by command, on the page.

Their weights are random, so what they find is right by no measure; that it is found by the prompts
that were sent is what is tested here.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser

from scripts.client import Client, ServiceError
from tests import tiny
from tests.conftest import picture_bytes
from tests.e2e.conftest import Service
from tests.e2e.test_page import CHROMIUM, _drag, _find, _open, _sent, browser

__all__ = ["browser"]  # the fixture

SIZE = (384, 303)
DOG = {"type": "text", "text": "a dog"}
BOX = {"type": "box", "box": [20, 20, 120, 100], "label": "a dog"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("open-vocabulary")
    tiny.owlv2(folder / "weights" / "owlv2")
    tiny.grounding_dino(folder / "weights" / "grounding-dino")
    service = Service(
        folder,
        MAYFLY_WEIGHTS_DIR=str(folder / "weights"),
        MAYFLY_MODELS="owlv2,grounding-dino",
        MAYFLY_DEFAULT_MODEL="owlv2",
        OMP_NUM_THREADS="1",
    )
    yield service
    service.stop()


async def _annotations(service: Service, model: str, *prompts: Any) -> list[tuple[str, float]]:
    request = {"model": model, "prompts": list(prompts), "min_score": 0}
    async with Client(service.url) as client:
        result = await client.annotate(picture_bytes(SIZE), request)
    return [(find.label, find.score) for find in result.annotations]


async def test_words_boxes_and_both_are_answered(service: Service) -> None:
    words = await _annotations(service, "owlv2", DOG)
    boxes = await _annotations(service, "owlv2", BOX)
    both = await _annotations(service, "owlv2", DOG, BOX)
    for found in (words, boxes, both):
        assert {label for label, _ in found} == {"a dog"}, "a text is its own label"
    assert boxes[0][1] == both[0][1] == 1, "the box that was drawn"
    assert words[0][1] < 1
    assert {label for label, _ in await _annotations(service, "grounding-dino", DOG)} == {"a dog"}


async def test_what_a_model_is_not_told_in_is_refused_with_what_it_takes(service: Service) -> None:
    for prompts, text in (
        ([BOX], r"is of type box; model grounding-dino takes text\."),
        ([], r'such as {"type": "text", "text": "a coin"}'),
        ([DOG | {"text": "dog " * 200}], "203 tokens"),
    ):
        with pytest.raises(ServiceError, match=text) as caught:
            await _annotations(service, "grounding-dino", *prompts)
        assert caught.value.status == 422


async def test_models_say_that_they_read(service: Service) -> None:
    async with Client(service.url) as client:
        owl, dino = [await client.model(name) for name in ("owlv2", "grounding-dino")]
    assert (owl.prompts, owl.tasks) == (["text", "box", "point", "embedding"], ["detect", "embed"])
    assert (dino.prompts, dino.tasks) == (["text"], ["detect"])
    assert owl.version.startswith("sha256:")
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line[:1] == "{"]
    loaded = {line["model"]: line["weights"] for line in lines if line["event"] == "weights loaded"}
    assert loaded == {"owlv2": owl.version, "grounding-dino": dino.version}


def test_the_command_is_told_in_words_by_a_box_and_by_a_file(
    service: Service, tmp_path: Path
) -> None:
    pictures = [str(tmp_path / f"{name}.png") for name in ("one", "two")]
    for path in pictures:
        Path(path).write_bytes(picture_bytes(SIZE))
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"type": "text", "text": "dog"}]))
    box = ["--box", "20,20,120,100:dog"]
    for told in (["--text", "dog"], ["--text", "dog", *box], ["--prompts", str(prompts)]):
        out = tmp_path / f"found-{len(told)}{told[0]}.json"
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "scripts.cli", "annotate", *pictures),
                *("--server", service.url, "--min-score", "0", *told),
                *("--format", "coco", "-o", str(out)),
            ],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        found = json.loads(out.read_text())
        assert [category["name"] for category in found["categories"]] == ["dog"]
        assert {one["image_id"] for one in found["annotations"]} == {1, 2}
        assert ("embedding of the examples" in ran.stderr) == ("--box" in told)


@pytest.mark.skipif(not CHROMIUM, reason="needs the program chromium: apt-get install chromium")
def test_the_page_has_a_field_for_words_where_the_model_reads(
    service: Service, browser: Browser, tmp_path: Path
) -> None:
    file = tmp_path / "picture.png"
    Image.new("RGB", SIZE, (90, 120, 60)).save(file)
    with browser.new_context(viewport={"width": 1100, "height": 900}) as context:
        page = context.new_page()
        page.goto(service.url)
        page.wait_for_selector("#format option", state="attached")
        _open(page, file, label="object")
        assert page.locator("#match-row").is_hidden()
        assert page.locator("#find").is_disabled()
        page.fill("#words", "dog, a cat,")
        assert page.input_value("#label") == "dog", "what a box would be called now"
        sent = _sent(page)
        _find(page)
        _drag(page, (20, 20, 120, 100))
        _find(page)
        page.select_option("#model", "grounding-dino")
        assert page.locator("[data-tool=example]").is_hidden()
        _find(page)
        assert "found in" in page.inner_text("#status")
        page.fill("#words", " ")
        assert page.locator("#find").is_disabled(), "a box says nothing to it"
    words = [{"type": "text", "text": text, "label": text} for text in ("dog", "a cat")]
    kinds = [[prompt["type"] for prompt in request["prompts"]] for request in sent]
    assert kinds == [["text", "text"], ["box", "text", "text"], ["text", "text"]]
    assert sent[0]["prompts"] == words
    assert sent[1]["prompts"][0]["label"] == "dog"

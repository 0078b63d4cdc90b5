"""What is measured with is what it says it is."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from jobs.contract import MAIN_IMAGE, Request
from scripts.bench.pictures import DETECTOR, JPEG_BYTES, SIZE, WISH, make_pictures, make_weights
from worker.decode import decode
from worker.models import load
from worker.models.base import Finds

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return make_pictures(12)  # as many as the bench makes its weights with


@pytest.fixture(scope="module")
def weights(pictures: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    make_weights(path, pictures)
    return path


def test_pictures_have_their_size_and_the_weights_find_something(
    pictures: list[bytes], weights: Path, tmp_path: Path
) -> None:
    assert abs(sum(map(len, pictures)) / len(pictures) - JPEG_BYTES) < JPEG_BYTES / 10
    images = [decode(picture, 50_000_000) for picture in pictures[:2]]
    assert {image.shape for image in images} == {(SIZE[1], SIZE[0], 3)}
    make_weights(tmp_path / "again.pth", pictures)
    first, again = (torch.load(at, weights_only=True) for at in (weights, tmp_path / "again.pth"))
    assert all(torch.equal(first[name], again[name]) for name in first), "their seed is fixed"
    model = load(DETECTOR, CPU, None, {DETECTOR: weights})
    request = msgspec.convert(WISH, Request)
    items = [model.prepare({MAIN_IMAGE: image}, request) for image in images]
    finds = [model.finish(raw, i) for raw, i in zip(model.forward(items), items, strict=True)]
    counts = [len(each.annotations) for each in finds if isinstance(each, Finds)]
    assert len(counts) == len(images)
    assert sum(counts) > 10


@pytest.mark.parametrize("engine", ["folded", "openvino"])
def test_no_engine_is_refused_for_the_weights(
    engine: str, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the slowest one would be measured."""
    if engine == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("the extra is not installed")
    with caplog.at_level(logging.INFO, "worker.engine"):
        load(DETECTOR, CPU, None, {DETECTOR: weights}, engine=engine)
    lines: list[Any] = caplog.records
    assert [(line.message, line.fields["engine"]) for line in lines] == [("engine", engine)]

"""What is measured with is what it says it is."""

from pathlib import Path

import msgspec
import torch

from jobs.contract import MAIN_IMAGE, Request
from scripts.bench.pictures import DETECTOR, JPEG_BYTES, SIZE, WISH, make_pictures, make_weights
from worker.decode import decode
from worker.models import load
from worker.models.base import Finds


def test_pictures_have_their_size_and_the_weights_find_something(tmp_path: Path) -> None:
    pictures = make_pictures(6)
    assert abs(sum(map(len, pictures)) / 6 - JPEG_BYTES) < JPEG_BYTES / 10
    images = [decode(picture, 50_000_000) for picture in pictures[:2]]
    assert {image.shape for image in images} == {(SIZE[1], SIZE[0], 3)}
    path = tmp_path / "weights.pth"
    make_weights(path, pictures[:2])
    make_weights(tmp_path / "again.pth", pictures[:2])
    first, again = (torch.load(each, weights_only=True) for each in (path, tmp_path / "again.pth"))
    assert all(torch.equal(first[name], again[name]) for name in first), "their seed is fixed"
    model = load(DETECTOR, torch.device("cpu"), None, {DETECTOR: path})
    request = msgspec.convert(WISH, Request)
    items = [model.prepare({MAIN_IMAGE: image}, request) for image in images]
    finds = [model.finish(raw, i) for raw, i in zip(model.forward(items), items, strict=True)]
    counts = [len(each.annotations) for each in finds if isinstance(each, Finds)]
    assert len(counts) == len(images)
    assert sum(counts) > 10

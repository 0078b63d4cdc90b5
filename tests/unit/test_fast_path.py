"""The fast way into torchvision's models, against the exact one, which equals torchvision's own.

Both ways share all that comes after the input, so two things are looked at: that the inputs lie on
each other to a part of a pixel, and what is left of the difference at the other end. The pictures
are photographs; the weights are fake (`random_network`): batch norms fitted to a photograph, and
classifiers sharpened until scores spread. Suppression, and every limit on numbers, is off where
finds are compared: with fake weights neighbours score alike, and which of two equals stays would be
all that is seen.
"""

import copy
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor
from torchvision.ops import box_iou

from jobs.contract import MAIN_IMAGE, Annotation, Request, Size
from jobs.settings import Settings
from tests.unit.test_zoo import CPU, FASTER, RETINA, SHARPER, SSDLITE, random_network
from worker.decode import Decoded, decode_reduced
from worker.models import detector, zoo
from worker.models.base import Pixels
from worker.models.detector import TorchvisionDetector
from worker.pipeline import Pipeline, Work

SIDE = 160  # of the input of the models whose input has no fixed size, to save time
SPREAD = {SSDLITE: 40, FASTER: 4, RETINA: 5}  # how much sharper the classifiers are
FLOOR = {SSDLITE: 0.04, FASTER: 0, RETINA: 0.5}  # below the finds that are compared, to save time
FINDS = 40  # the best of an image are compared ...
ALL = 100_000  # ... with all others, so that none is missing because another one took its place
ROUNDING = 1  # of 255 levels; rows and columns are rounded, each by a half at most
MIN_IOU, MAX_SCORE_OFF = 0.9, 0.03
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Ways:
    """One network behind both ways in."""

    exact: TorchvisionDetector
    fast: TorchvisionDetector


def ways(network: Any, name: str) -> Ways:
    classes = [None, *(f"class {number}" for number in range(1, 91))]
    info = zoo._info(name, "fake", list(classes), Path("fake.pth"))
    return Ways(
        TorchvisionDetector(copy.deepcopy(network), info, list(classes), CPU, exact=True),
        TorchvisionDetector(network, info, list(classes), CPU),
    )


@pytest.fixture(scope="module", params=list(SPREAD))
def model(request: pytest.FixtureRequest) -> Ways:
    name: str = request.param
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(SHARPER, name, SPREAD[name])
        network: Any = random_network(name)
    if network.transform.fixed_size is None:
        network.transform.min_size, network.transform.max_size = (SIDE,), SIDE * 3 // 2
    chooser = network.roi_heads if name == FASTER else network
    chooser.nms_thresh, chooser.detections_per_img, chooser.score_thresh = 1, ALL, 0
    if name == FASTER:
        network.rpn.nms_thresh = 1
        network.rpn._pre_nms_top_n = network.rpn._post_nms_top_n = {"testing": ALL}
    else:
        network.topk_candidates = ALL
    return ways(network, name)


def jpeg(pixels: Pixels, larger: int = 1) -> bytes:
    image = Image.fromarray(pixels)
    image = image.resize((image.width * larger, image.height * larger), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def photographs() -> list[bytes]:
    return [jpeg(data.coffee()), jpeg(data.astronaut())]  # type: ignore[no-untyped-call]


def large_photograph(model: TorchvisionDetector) -> bytes:
    """So much larger than the model's input that half of its sides will do."""
    eye: Pixels = data.retina()[:1408, :1408]  # type: ignore[no-untyped-call]
    return jpeg(eye, 1 if model._transform.fixed_size is None else 2)


def prepared(
    model: TorchvisionDetector, file: bytes, min_score: float = 0, most: int = ALL
) -> detector.Prepared:
    pixels, reduction = decode_reduced(file, 10**8, model.reduction)
    request = Request(min_score=min_score, max_annotations=most)
    return model.prepare({MAIN_IMAGE: pixels}, request, reduction)


def finds(
    model: TorchvisionDetector, file: bytes, min_score: float, most: int = ALL
) -> list[Annotation]:
    item = prepared(model, file, min_score, most)
    return model.finish(model.forward([item])[0], item).annotations


def shift(one: Tensor, other: Tensor) -> tuple[float, float]:
    """By how many pixels, in x and y, `other` lies beside `one`; least squares on the slopes."""
    grey, difference = one.mean(0).numpy(), (other - one).mean(0).numpy()
    slopes = np.gradient(grey)
    dy, dx = (float(-(slope * difference).sum() / (slope**2).sum()) for slope in slopes)
    return dx, dy


def input_of(model: TorchvisionDetector, file: bytes) -> Tensor:
    return model._normalised([prepared(model, file)])[0]


def assert_same_place(model: Ways, file: bytes) -> None:
    one, other = input_of(model.exact, file), input_of(model.fast, file)
    assert one.shape == other.shape
    assert max(map(abs, shift(one, other))) < 0.02


def worst(wanted: list[Annotation], got: list[Annotation]) -> tuple[float, float]:
    """The smallest overlap of a find with the nearest one of its label; their scores' distance."""
    overlap = box_iou(*(torch.tensor([find.box for find in finds]) for finds in (wanted, got)))
    same = torch.tensor([[find.label == other.label for other in got] for find in wanted])
    apart = torch.tensor([[abs(find.score - other.score) for other in got] for find in wanted])
    overlap = overlap * same
    near = torch.where(overlap >= MIN_IOU, apart, 1).amin(1)
    return float(overlap.amax(1).min()), float(near.max())


def assert_same_finds(model: Ways, file: bytes) -> None:
    wanted = finds(model.exact, file, FLOOR[model.exact.info.name], FINDS)
    assert len(wanted) == FINDS
    got = finds(model.fast, file, max(wanted[-1].score - 1.1 * MAX_SCORE_OFF, wanted[-1].score / 2))
    iou, off = worst(wanted, got)
    assert iou >= MIN_IOU
    assert off <= MAX_SCORE_OFF


def test_the_inputs_differ_by_the_rounding_to_8_bits(model: Ways) -> None:
    for file in photographs():
        one, other = input_of(model.exact, file), input_of(model.fast, file)
        assert (
            model.fast.reduction(*decode_reduced(file, 10**8, lambda *_: 1).pixels.shape[:2]) == 1
        )
        assert float(((one - other) / model.fast._gain).abs().max()) <= ROUNDING
    assert_same_place(model, photographs()[0])


def test_finds_are_those_of_the_exact_way(model: Ways) -> None:
    for file in photographs():
        assert_same_finds(model, file)


def test_finds_in_a_reduced_picture_are_those_of_the_exact_way(model: Ways) -> None:
    file = large_photograph(model.fast)
    assert prepared(model.fast, file).image_size == prepared(model.exact, file).image_size
    assert_same_place(model, file)
    assert_same_finds(model, file)


def test_annotations_are_in_pixels_of_the_picture_that_was_sent(model: Ways) -> None:
    file = large_photograph(model.fast)
    size = Image.open(io.BytesIO(file)).size
    pipeline = Pipeline(cast(Any, None), [], {}, cast(Any, None), Settings())
    work = Work(Request(model=model.fast.info.name), {MAIN_IMAGE: file}, 0)
    done = pipeline._prepare(model.fast, work)
    assert done.size == Size(*size)
    assert done.item.image_size == size[::-1]


@pytest.mark.parametrize("planted", ["half a pixel", "one row less"])
def test_a_misplaced_reduction_is_found(
    model: Ways, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = decode_reduced

    def misplaced(*arguments: Any) -> Decoded:
        pixels, reduction = decoded(*arguments)
        if reduction > 1 and planted == "half a pixel":
            pixels = ((pixels + np.roll(pixels, 1, axis=1).astype(float)) / 2).astype(np.uint8)
        elif reduction > 1:
            pixels = np.concatenate([pixels[1:], pixels[-1:]])
        return Decoded(pixels, reduction)

    monkeypatch.setattr("tests.unit.test_fast_path.decode_reduced", misplaced)
    with pytest.raises(AssertionError):
        assert_same_place(model, large_photograph(model.fast))


@pytest.mark.parametrize(
    ("size", "reduction"),
    [
        ((2560, 2560), 2),
        ((2559, 2560), 1),  # half of it is no whole number
        ((2560, 2558), 1),  # too small
        ((5120, 5120), 4),
        ((5120, 10240), 4),
        ((10240, 10240), 8),
        ((40960, 40960), 8),
    ],
)
def test_only_what_the_model_has_no_use_for_is_left_out(
    size: tuple[int, int], reduction: int
) -> None:
    two = ways(random_network(SSDLITE), SSDLITE)
    assert two.fast.reduction(*size) == reduction
    assert two.exact.reduction(*size) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_pixels_are_means_in_the_place_of_those_they_stand_for(orientation: int) -> None:
    image = Image.fromarray(data.astronaut()[:256])  # type: ignore[no-untyped-call]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    whole, _ = decode_reduced(file.getvalue(), 10**8, lambda *_: 1)
    seen = []

    def by(reduction: int) -> Decoded:
        def choose(height: int, width: int) -> int:
            seen.append((height, width))
            return reduction

        return decode_reduced(file.getvalue(), 10**8, choose)

    for reduction in (2, 4, 8):
        pixels, done = by(reduction)
        assert done == reduction
        height, width = whole.shape[0] // reduction, whole.shape[1] // reduction
        means = whole.reshape(height, reduction, width, reduction, 3).mean((1, 3))
        assert np.abs(pixels - means).mean() < 1
    assert set(seen) == {whole.shape[:2]}

"""Every format is read back by a reader that people use, and has to say the same as the result."""

import csv
import json
import re
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage  # type: ignore[import-untyped]

from jobs.contract import Annotated, Annotation, Embedded, Mask, ModelRef, Size, Timing
from jobs.formats import (
    FORMATS,
    data_yaml,
    label_studio_regions,
    labels_of,
    masks,
    mayfly,
    outlines,
    write_coco,
    yolo,
)

with warnings.catch_warnings():
    # supervision says on import that it does without OpenCV, which is what we want here
    warnings.filterwarnings("ignore", "OpenCV .* is not installed", UserWarning)
    import supervision as sv
    from supervision.dataset.formats.pascal_voc import detections_from_xml_obj
    from supervision.dataset.formats.yolo import yolo_annotations_to_detections

# pycocotools 2.0 hands numpy 2 an array wrapper of the old kind; nothing here can change that
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Pixels = NDArray[np.bool_]
TIMING = Timing(1.0, 2.0, 30.0, 4)
MODEL = ModelRef("exemplar", "1")
NASTY = [
    "coin",
    "</name><b>&amp;\"'",
    'a,b;"c"\r\nd',
    "=1+1",
    " @SUM(A1)",
    "'quoted",
    "\x00\x01\x1f\x7f\ufffe",
    "null",
    "1: [x]",
    "\u2028\u0085\ufeff",
    "硬币 🪙",
    "tab\tend ",
    "\rstart",
    "\t1+1",
    "-",
    "+",
    " ",
]


def result_of(size: tuple[int, int], *finds: Annotation) -> Annotated:
    return Annotated(Size(*size), MODEL, list(finds), TIMING)


def mask_of(pixels: Pixels) -> Mask:
    encoded = coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
    height, width = encoded["size"]
    return Mask((height, width), encoded["counts"].decode())


def disc(size: tuple[int, int], x: float, y: float, radius: float) -> Pixels:
    width, height = size
    down, across = np.mgrid[:height, :width] + 0.5
    return (across - x) ** 2 + (down - y) ** 2 <= radius**2  # type: ignore[no-any-return]


def masked(label: str, score: float, pixels: Pixels, **more: Any) -> Annotation:
    downs, acrosses = np.nonzero(pixels)
    box = (acrosses.min(), downs.min(), acrosses.max() + 1, downs.max() + 1)
    return Annotation(label, score, tuple(map(float, box)), mask_of(pixels), **more)  # type: ignore[arg-type]


def body(name: str, result: Annotated, image: str = "image.png") -> Any:
    return json.loads(FORMATS[name].render(result, image))


def boxes_of(result: Annotated) -> NDArray[np.float64]:
    return np.array([find.box for find in result.annotations], dtype=float).reshape(-1, 4)


@pytest.fixture
def people() -> Annotated:
    """Two labels; boxes, one mask with a hole and a far part, and keypoints."""
    size = (64, 48)
    pixels = disc(size, 20, 20, 12) & ~disc(size, 20, 20, 5) | disc(size, 55, 40, 4)
    points = [(float(x), 10.0, x % 3) for x in range(17)]
    return result_of(
        size,
        Annotation("person", 0.9, (1.0, 2.0, 30.0, 40.0), keypoints=points),
        masked("coin", 0.8, pixels),
        Annotation("coin", 0.7, (40.0, 0.0, 64.0, 48.0)),
    )


# What hypothesis may come up with: any label, any box inside the image, some masks.


@st.composite
def results(draw: st.DrawFn, with_masks: bool = True) -> Annotated:
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    finds = []
    for _ in range(draw(st.integers(0, 4))):
        x0, x1 = sorted(draw(st.tuples(*[st.floats(0, width)] * 2)))
        y0, y1 = sorted(draw(st.tuples(*[st.floats(0, height)] * 2)))
        label = draw(st.sampled_from(NASTY) | st.text(min_size=1, max_size=200))
        mask = draw(st.none() | pixel_arrays(width, height).map(mask_of)) if with_masks else None
        finds.append(Annotation(label, draw(st.floats(0, 1)), (x0, y0, x1, y1), mask))
    return result_of((width, height), *finds)


NASTY_LABELS = result_of(
    (30, 20),
    *[
        Annotation(label, at / 100, (at / 3, 0.5, 20.0 + at / 2, 19.0))
        for at, label in enumerate(NASTY)
    ],
)


def pixel_arrays(width: int, height: int) -> st.SearchStrategy[Pixels]:
    """Noise of any density, smooth or not, so that parts touch, nest and have holes."""

    def draw_pixels(seed: int, share: float, blur: float) -> Pixels:
        noise = np.random.default_rng(seed).random((height, width))
        smooth = ndimage.gaussian_filter(noise, blur) if blur else noise
        return smooth < np.quantile(smooth, share)

    return st.builds(
        draw_pixels, st.integers(0, 2**32 - 1), st.floats(0, 1), st.sampled_from([0.0, 1.0, 2.0])
    )


pixels_of_any_size = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda size: pixel_arrays(*size)
)
check = settings(max_examples=60, deadline=None)


# The table of formats


def test_names_and_media_types_are_those_of_the_contract() -> None:
    assert list(FORMATS) == [
        "mayfly",
        "coco",
        "coco-polygon",
        "yolo",
        "yolo-seg",
        "yolo-pose",
        "voc",
        "labelme",
        "label-studio",
        "cvat",
        "roboflow",
        "csv",
    ]
    for form in FORMATS.values():
        assert re.fullmatch(r"(application|text)/[a-z]+(; .+)?", form.media_type)
        assert form.extension in ("json", "txt", "xml", "csv")
    assert [name for name, form in FORMATS.items() if form.numbered] == [
        "yolo",
        "yolo-seg",
        "yolo-pose",
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_without_finds_is_an_answer(name: str) -> None:
    assert isinstance(FORMATS[name].render(result_of((10, 10))), bytes)


@pytest.mark.parametrize("name", ["coco", "voc", "labelme", "label-studio", "cvat"])
def test_folders_in_the_image_name_are_dropped(name: str) -> None:
    text = FORMATS[name].render(result_of((10, 10)), "../secret\\folder/cat.png").decode()
    assert "cat.png" in text
    assert "secret" not in text
    assert "folder/" not in text


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_name_that_is_no_unicode_does_not_break_the_answer(name: str) -> None:
    FORMATS[name].render(result_of((10, 10)), b"caf\xe9.png".decode("utf-8", "surrogateescape"))


def test_mayfly_is_the_result_itself(people: Annotated) -> None:
    text = FORMATS["mayfly"].render(people)
    assert msgspec.json.decode(text, type=Annotated | Embedded) == people
    embedded = Embedded(MODEL, "AAAA", TIMING)
    assert msgspec.json.decode(mayfly(embedded), type=Annotated | Embedded) == embedded


def test_formats_need_no_heavy_imports() -> None:
    code = "import sys, jobs.formats; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert not {b"numpy", b"torch", b"PIL", b"aiohttp"} & set(loaded.split())


# COCO


def average_precision(truth: Path, found: list[dict[str, Any]], kind: str) -> float:
    known = COCO(str(truth))
    evaluation = COCOeval(known, known.loadRes(found), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_coco_evaluates_to_perfect_against_itself(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    items = []
    for number in range(4):
        finds = []
        for at in range(12):
            pixels = disc((200, 160), 20 + at * 14, 20 + rng.uniform(0, 120), rng.uniform(6, 14))
            points = [(*map(float, rng.uniform(10, 150, 2)), 2) for _ in range(17)]
            label = NASTY[at % 3]
            finds.append(masked(label, float(rng.uniform(0.1, 1)), pixels, keypoints=points))
        items.append((f"{number}.png", result_of((200, 160), *finds)))
    path = tmp_path / "truth.json"
    with path.open("wb") as out:
        write_coco(out, items)
    found = json.loads(path.read_bytes())["annotations"]
    assert average_precision(path, found, kind) == pytest.approx(1)
    for entry in found:  # and the evaluation would notice
        entry["bbox"][0] += 9
        entry["segmentation"] = mask_dict(np.roll(coco_mask.decode(entry["segmentation"]), 9, 1))
        entry["keypoints"] = [number + 30 for number in entry["keypoints"]]
    assert average_precision(path, found, kind) < 0.9


def mask_dict(pixels: Pixels) -> dict[str, Any]:
    return {"size": mask_of(pixels).size, "counts": mask_of(pixels).counts}


def test_coco_in_detail(people: Annotated) -> None:
    data = body("coco", people)
    assert data["images"] == [{"id": 1, "file_name": "image.png", "width": 64, "height": 48}]
    assert [(entry["id"], entry["name"]) for entry in data["categories"]] == [
        (1, "coin"),
        (2, "person"),
    ]
    person, coin, box_only = data["annotations"]
    assert [entry["id"] for entry in data["annotations"]] == [1, 2, 3]
    assert person["bbox"] == [1, 2, 29, 38]
    assert person["area"] == 29 * 38
    assert len(person["keypoints"]) == 3 * 17
    assert person["num_keypoints"] == 11
    assert len(data["categories"][1]["keypoints"]) == 17
    assert coin["area"] == coco_mask.area(coin["segmentation"])
    assert coin["iscrowd"] == 0
    assert box_only["segmentation"] == []


@check
@example(NASTY_LABELS)
@given(results())
def test_coco_and_supervision_agree(result: Annotated) -> None:
    data = body("coco", result)
    names = {entry["id"]: entry["name"] for entry in data["categories"]}
    assert [names[entry["category_id"]] for entry in data["annotations"]] == [
        find.label for find in result.annotations
    ]
    assert [entry["score"] for entry in data["annotations"]] == [
        find.score for find in result.annotations
    ]
    corners = np.array([entry["bbox"] for entry in data["annotations"]]).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    np.testing.assert_allclose(corners, boxes_of(result), atol=1e-9)


def test_a_data_set_keeps_the_order_of_its_labels() -> None:
    items = [
        (f"{label}.png", result_of((9, 9), Annotation(label, 0.5, (1, 2, 3, 4))))
        for label in ("b", "a")
    ]
    for labels, expected in ((None, ["a", "b"]), (["z", "b", "a"], ["z", "b", "a"])):
        out = BytesIO()
        write_coco(out, items, labels)
        data = json.loads(out.getvalue())
        assert [entry["name"] for entry in data["categories"]] == expected
        assert [entry["id"] for entry in data["annotations"]] == [1, 2]
        assert [entry["image_id"] for entry in data["annotations"]] == [1, 2]
        ids = [entry["category_id"] for entry in data["annotations"]]
        assert [expected[number - 1] for number in ids] == ["b", "a"]


def test_a_data_set_refuses_what_it_cannot_write() -> None:
    result = result_of((9, 9), Annotation("a", 0.5, (1, 2, 3, 4)))
    with pytest.raises(TypeError, match="twice"):
        write_coco(BytesIO(), (item for item in [("a.png", result)]))
    with pytest.raises(ValueError, match="'a'"):
        write_coco(BytesIO(), [("a.png", result)], ["b"])
    with pytest.raises(ValueError, match="distinct"):
        write_coco(BytesIO(), [("a.png", result)], ["a", "a"])
    with pytest.raises(ValueError, match="'a'"):
        yolo(result, ["b"])


def test_a_data_set_of_any_length_needs_little_memory() -> None:
    class Many:
        def __iter__(self) -> Iterator[tuple[str, Annotated]]:
            for number in range(3000):
                yield f"{number}.png", result_of((9, 9), *[Annotation("a", 0.5, (1, 2, 3, 4))] * 5)

    class Sink(BytesIO):
        written = 0

        def write(self, data: Any) -> int:
            self.written += len(data)
            return len(data)

    sink = Sink()
    tracemalloc.start()
    write_coco(sink, Many())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sink.written > 2_000_000
    assert peak < 200_000


# supervision reads the files


def test_supervision_loads_the_data_sets(tmp_path: Path, people: Annotated) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "image.png")
    labels = labels_of([people])
    expected = [labels.index(find.label) for find in people.annotations]
    for name in ("coco", "yolo", "voc", "labelme"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"image.{FORMATS[name].extension}").write_bytes(
            FORMATS[name].render(people, "image.png")
        )
    (tmp_path / "data.yaml").write_text(data_yaml(labels), encoding="utf-8")
    images, dataset = str(tmp_path), sv.DetectionDataset
    loaded = {
        "coco": dataset.from_coco(images, str(tmp_path / "coco/image.json")),
        "yolo": dataset.from_yolo(images, str(tmp_path / "yolo"), str(tmp_path / "data.yaml")),
        "voc": dataset.from_pascal_voc(images, str(tmp_path / "voc")),
    }
    for name, data in loaded.items():
        assert data.classes == labels, name
        (detections,) = data.annotations.values()
        np.testing.assert_allclose(detections.xyxy, boxes_of(people), atol=1e-4, err_msg=name)
        assert detections.class_id is not None
        assert list(detections.class_id) == expected, name
    with pytest.warns(UserWarning, match="point"):  # it has no keypoints from LabelMe
        labelme = dataset.from_labelme(images, str(tmp_path / "labelme"))
    (detections,) = labelme.annotations.values()
    np.testing.assert_allclose(detections.xyxy, boxes_of(people))


@check
@example(NASTY_LABELS)
@given(results())
def test_yolo_and_supervision_agree(result: Annotated) -> None:
    labels = labels_of([result])
    assert [*yaml.safe_load(data_yaml(labels))["names"].values()] == labels
    size = (result.image.width, result.image.height)
    lines = FORMATS["yolo"].render(result).decode().splitlines()
    scored = yolo(result, labels, confidence=True).splitlines()
    assert len(lines) == len(scored) == len(result.annotations)
    for find, line, with_score in zip(result.annotations, lines, scored, strict=True):
        numbers = [float(field) for field in line.split()[1:]]
        assert len(numbers) == 4
        assert all(0 <= number <= 1 for number in numbers)
        assert with_score.rsplit(" ", 1)[0] == line
        assert float(with_score.split()[5]) == pytest.approx(find.score, abs=1e-6)
    if lines:
        read = yolo_annotations_to_detections(lines, size, with_masks=False)
        np.testing.assert_allclose(read.xyxy, boxes_of(result), atol=1e-4)
        assert read.class_id is not None
        assert [labels[at] for at in read.class_id] == [find.label for find in result.annotations]


@check
@example(NASTY_LABELS)
@given(results())
def test_yolo_polygons_have_the_bounds_of_the_mask_or_the_box(result: Annotated) -> None:
    lines = FORMATS["yolo-seg"].render(result).decode().splitlines()
    sides = np.array([result.image.width, result.image.height])
    for find, line in zip(result.annotations, lines, strict=True):
        polygon = np.array(line.split()[1:], dtype=float).reshape(-1, 2) * sides
        assert len(polygon) >= 3
        bounds = [*polygon.min(0), *polygon.max(0)]
        expected = bounds_of_largest_parts(find.mask) if find.mask else []
        assert any(np.allclose(bounds, box, atol=1e-5) for box in expected or [find.box])


def bounds_of_largest_parts(mask: Mask) -> list[tuple[float, ...]]:
    """Bounds of the largest part, of several if they are of one size."""
    parts = filled_parts(coco_mask.decode({"size": mask.size, "counts": mask.counts}) > 0)
    largest = max((part.sum() for part in parts), default=0)
    return [masked("", 0, part).box for part in parts if part.sum() == largest]


def filled_parts(pixels: Pixels) -> list[Pixels]:
    """Parts of a mask, holes filled, as scipy sees them (pixels that touch belong together)."""
    numbered, count = ndimage.label(pixels, np.ones((3, 3)))
    return [ndimage.binary_fill_holes(numbered == at + 1) for at in range(count)]


@check
@example(NASTY_LABELS)
@given(results())
def test_voc_and_supervision_agree_on_whole_pixels(result: Annotated) -> None:
    whole = [
        msgspec.structs.replace(find, box=(float(x0), float(y0), float(x1), float(y1)))
        for find in result.annotations
        for x0, y0 in [(int(find.box[0]), int(find.box[1]))]
        for x1, y1 in [(int(find.box[2]), int(find.box[3]))]
        if x1 > x0 and y1 > y0
    ]
    result = msgspec.structs.replace(result, annotations=whole)
    root = ElementTree.fromstring(FORMATS["voc"].render(result))
    read, _ = detections_from_xml_obj(root, [], (result.image.width, result.image.height))
    np.testing.assert_array_equal(read.xyxy, boxes_of(result))


@check
@example(NASTY_LABELS)
@given(results())
def test_voc_stays_inside_the_image_and_within_half_a_pixel(result: Annotated) -> None:
    root = ElementTree.fromstring(FORMATS["voc"].render(result))
    labels = [found.findtext("name") for found in root.iter("object")]
    assert labels == [legal_in_xml(find.label) for find in result.annotations]
    for find, found in zip(result.annotations, root.iter("object"), strict=True):
        corners = {side: int(found.findtext(f"bndbox/{side}") or "") for side in VOC_SIDES}
        assert 1 <= corners["xmin"] <= corners["xmax"] <= result.image.width
        assert 1 <= corners["ymin"] <= corners["ymax"] <= result.image.height
        if find.box[2] - find.box[0] >= 1 and find.box[3] - find.box[1] >= 1:
            read = [corners["xmin"] - 1, corners["ymin"] - 1, corners["xmax"], corners["ymax"]]
            np.testing.assert_allclose(read, find.box, atol=1)


VOC_SIDES = ("xmin", "ymin", "xmax", "ymax")


def legal_in_xml(label: str) -> str:
    def legal(code: int) -> bool:
        if code < 32:
            return code in (9, 10, 13)
        return not 0xD800 <= code <= 0xDFFF and code not in (0xFFFE, 0xFFFF)

    return "".join(char if legal(ord(char)) else "\ufffd" for char in label)


@check
@example(NASTY_LABELS)
@given(results())
def test_cvat_boxes_masks_and_labels_survive(result: Annotated) -> None:
    root = ElementTree.fromstring(FORMATS["cvat"].render(result, "image.png"))
    image = root.find("image")
    assert image is not None
    assert (image.get("name"), image.get("id")) == ("image.png", "0")
    assert root.findtext("version") == "1.1"
    for find, shape in zip(result.annotations, image, strict=True):
        assert shape.get("label") == legal_in_xml(find.label)
        if shape.tag == "box":
            assert not find.mask or not masks.area(find.mask)
            read = [float(shape.get(side) or "") for side in ("xtl", "ytl", "xbr", "ybr")]
            assert tuple(read) == find.box
        else:
            assert find.mask is not None
            np.testing.assert_array_equal(
                cvat_pixels(shape, result.image),
                coco_mask.decode({"size": find.mask.size, "counts": find.mask.counts}),
            )


def cvat_pixels(shape: ElementTree.Element, image: Size) -> NDArray[np.int_]:
    left, top, width, height = (
        int(shape.get(side) or "") for side in ("left", "top", "width", "height")
    )
    runs = [int(run) for run in (shape.get("rle") or "").split(",")]
    pixels = np.zeros((image.height, image.width), dtype=int)
    crop = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    pixels[top : top + height, left : left + width] = crop
    return pixels


def test_cvat_puts_keypoints_in_the_group_of_their_find(people: Annotated) -> None:
    root = ElementTree.fromstring(FORMATS["cvat"].render(people))
    shapes = [(shape.tag, shape.get("group_id")) for shape in root.iterfind("image/*")]
    assert shapes == [("box", "1"), ("points", "1"), ("mask", None), ("box", None)]
    points = root.find("image/points")
    assert points is not None
    assert (points.get("points") or "").split(";")[0] == "1.0,10.0"  # 0 has no place
    assert len((points.get("points") or "").split(";")) == 11


# JSON of the tools


@check
@example(NASTY_LABELS)
@given(results(with_masks=False))
def test_labelme_rectangles_are_the_boxes(result: Annotated) -> None:
    data = body("labelme", result)
    assert data["imageData"] is None
    assert data["version"]
    assert (data["imageWidth"], data["imageHeight"]) == (result.image.width, result.image.height)
    for find, shape in zip(result.annotations, data["shapes"], strict=True):
        assert shape["label"] == find.label
        assert shape["shape_type"] == "rectangle"
        assert tuple(number for point in shape["points"] for number in point) == find.box


def test_labelme_groups_what_belongs_to_one_find(people: Annotated) -> None:
    shapes = body("labelme", people)["shapes"]
    kinds = [(shape["shape_type"], shape["group_id"]) for shape in shapes]
    assert kinds[0] == ("rectangle", 0)
    assert kinds[1:12] == [("point", 0)] * 11
    assert kinds[12:] == [("polygon", 1), ("polygon", 1), ("rectangle", None)]


@check
@example(NASTY_LABELS)
@given(results(with_masks=False))
def test_label_studio_speaks_percent(result: Annotated) -> None:
    ((prediction,),) = [task["predictions"] for task in body("label-studio", result)]
    assert prediction["model_version"] == "exemplar 1"
    for find, region in zip(result.annotations, prediction["result"], strict=True):
        value = region["value"]
        assert value["rectanglelabels"] == [find.label]
        assert (region["from_name"], region["to_name"]) == ("label", "image")
        width, height = region["original_width"], region["original_height"]
        across, down = value["x"] / 100 * width, value["y"] / 100 * height
        read = (
            across,
            down,
            across + value["width"] / 100 * width,
            down + value["height"] / 100 * height,
        )
        np.testing.assert_allclose(read, find.box, atol=1e-9)


def test_label_studio_regions_follow_the_controls(people: Annotated) -> None:
    regions = label_studio_regions(people)
    assert len({region["id"] for region in regions}) == len(regions)
    kinds = [region["type"] for region in regions]
    assert kinds[:1] + kinds[12:] == ["rectanglelabels"] + ["polygonlabels"] * 2 + [
        "rectanglelabels"
    ]
    assert {region.get("parentID") for region in regions[1:12]} == {"1-1"}
    polygon = np.array(regions[12]["value"]["points"])
    np.testing.assert_allclose(polygon.min(0), [8 / 64 * 100, 8 / 48 * 100])

    only_boxes = label_studio_regions(people, {"rectanglelabels": "b"}, "photo")
    assert [region["type"] for region in only_boxes] == ["rectanglelabels"] * 3
    assert {(region["from_name"], region["to_name"]) for region in only_boxes} == {("b", "photo")}


@check
@example(NASTY_LABELS)
@given(results())
def test_roboflow_and_supervision_agree(result: Annotated) -> None:
    data = body("roboflow", result)
    read = sv.Detections.from_inference(data)
    np.testing.assert_allclose(read.xyxy, boxes_of(result), atol=1e-9)
    finds = result.annotations
    assert read.confidence is not None
    np.testing.assert_allclose(read.confidence, [find.score for find in finds])
    assert [entry["class"] for entry in data["predictions"]] == [find.label for find in finds]
    assert read.class_id is not None
    assert [labels_of([result])[at] for at in read.class_id] == [find.label for find in finds]
    if finds and all(find.mask for find in finds):
        assert read.mask is not None
        for find, pixels in zip(finds, np.asarray(read.mask), strict=True):
            assert find.mask
            assert masks.area(find.mask) == pixels.sum()


def test_roboflow_keypoints_are_read_by_supervision() -> None:
    points = [(1.0, 2.0, 2), (0.0, 0.0, 0), (3.0, 4.0, 1)]
    result = result_of((9, 9), Annotation("person", 0.9, (1, 2, 3, 4), keypoints=points))
    read = sv.KeyPoints.from_inference(body("roboflow", result))
    np.testing.assert_allclose(read.xy, [[[1, 2], [0, 0], [3, 4]]])


# CSV


@check
@example(NASTY_LABELS)
@given(results(with_masks=False))
def test_csv_is_read_back_exactly_and_starts_no_formula(result: Annotated) -> None:
    text = FORMATS["csv"].render(result).decode()
    head, *rows = csv.reader(StringIO(text, newline=""))
    assert head == ["label", "score", "x0", "y0", "x1", "y1"]
    for find, (label, *numbers) in zip(result.annotations, rows, strict=True):
        assert label[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n")
        assert label.strip()[:1] not in ("=", "+", "-", "@")
        assert label.removeprefix("'") == find.label
        assert [float(number) for number in numbers] == [find.score, *find.box]


# Masks


@check
@given(pixels_of_any_size)
def test_exact_outlines_draw_the_mask_again(pixels: Pixels) -> None:
    height, width = pixels.shape
    rings = outlines(mask_of(pixels), tolerance=0)
    parts = filled_parts(pixels)
    assert [part.sum() for part in sorted(parts, key=np.sum, reverse=True)] == [
        drawn([ring], width, height).sum() for ring in rings
    ]
    filled = np.any([np.zeros_like(pixels), *parts], axis=0)
    np.testing.assert_array_equal(drawn(rings, width, height), filled)


@check
@given(pixels_of_any_size)
def test_simpler_outlines_keep_the_bounds_and_nearly_the_area(pixels: Pixels) -> None:
    mask = mask_of(pixels)
    height, width = pixels.shape
    for exact, simple in zip(outlines(mask, 0), outlines(mask), strict=True):
        assert 3 <= len(simple) <= len(exact)
        assert np.array_equal(np.min(simple, 0), np.min(exact, 0))
        assert np.array_equal(np.max(simple, 0), np.max(exact, 0))
        one, other = drawn([exact], width, height), drawn([simple], width, height)
        assert (one & other).sum() >= 0.8 * (one | other).sum()


def drawn(rings: list[list[tuple[int, int]]], width: int, height: int) -> Pixels:
    if not rings:
        return np.zeros((height, width), dtype=bool)
    polygons = [[float(number) for corner in ring for number in corner] for ring in rings]
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return coco_mask.decode(merged) > 0  # type: ignore[no-any-return]


def test_a_large_disc_needs_few_corners() -> None:
    mask = mask_of(disc((600, 600), 300, 300, 250))
    assert len(outlines(mask, 0)[0]) > 1000
    assert len(outlines(mask)[0]) < 300


@check
@given(pixels_of_any_size)
def test_area_counts_pixels(pixels: Pixels) -> None:
    assert masks.area(mask_of(pixels)) == pixels.sum()


@pytest.mark.parametrize("counts", ["", "\x00", "1", "é", "o", "P1"])
def test_a_broken_mask_is_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="mask"):
        masks.area(Mask((4, 4), counts))

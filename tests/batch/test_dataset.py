"""Data sets as whole folders, read back by the readers that people use."""

import csv
import json
import warnings
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from PIL import Image
from pycocotools.coco import COCO

from jobs.contract import Annotated, Annotation, ModelRef, Size, Timing
from scripts.dataset import KINDS, Output, atomic, part_of
from scripts.journal import Entry, Journal
from scripts.sources import Inputs
from tests.unit.test_formats import disc, masked

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "OpenCV .* is not installed", UserWarning)
    import supervision as sv

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (64, 48)
LABELS = ["nut", "bolt"]  # not in the order of the alphabet, which must not matter
NAMES = [f"{number:02}.png" for number in range(12)]
Make = Callable[..., Output]


def finds(seed: int) -> list[Annotation]:
    rng = np.random.default_rng(seed)
    boxes = []
    for at in range(seed % 4):
        x0, y0 = (int(n) for n in rng.integers(0, 20, 2))
        box = (float(x0), float(y0), float(x0 + 9 + at), float(y0 + 11))
        boxes.append(Annotation(LABELS[at % 2], 0.9 - at / 10, box))
    return boxes


def entry(name: str, seed: int, found: list[Annotation] | None = None) -> Entry:
    annotations = finds(seed) if found is None else found
    result = Annotated(Size(*SIZE), ModelRef("m", "1"), annotations, Timing(1, 1, 1, 1))
    return Entry(name, str(seed), f"{seed * 0x1555:012x}".rjust(64, "0")[::-1], result)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in NAMES:
        Image.new("RGB", SIZE).save(folder / name)
    return folder


@pytest.fixture
def journal() -> Iterator[Journal]:
    journal = Journal(None, "")
    for number in (5, 3, 11, 0, 1, 2, 4, 6, 7, 8, 9, 10):  # as they happen to be ready
        journal.add(entry(NAMES[number], number))
    yield journal
    journal.close()


@pytest.fixture
def output(pictures: Path, tmp_path: Path) -> Make:
    def make(kind: str, share: float = 0, images: Any = "none", prefix: str = "") -> Output:
        sources = {source.name: source for source in Inputs([str(pictures)], 1 << 20)}
        out = tmp_path / "out" if KINDS[kind].write is None or share else tmp_path / "out.json"
        return Output(out, kind, LABELS, share, images, prefix, sources)

    return make


def boxes(journal: Journal, name: str) -> Any:
    return np.array([find.box for find in journal[name].result.annotations]).reshape(-1, 4)


def same(read: Any, journal: Journal) -> list[str]:
    """Check what a reader of supervision's gives; returns the images it has."""
    assert read.classes == LABELS
    for path, detections in read.annotations.items():
        name = Path(path).name
        np.testing.assert_allclose(detections.xyxy, boxes(journal, name), atol=1e-3)
        expected = [LABELS.index(find.label) for find in journal[name].result.annotations]
        assert list(detections.class_id) == expected
    return [Path(path).name for path in read.annotations]


def test_yolo_is_read_by_supervision(output: Make, journal: Journal, tmp_path: Path) -> None:
    """Both parts, with links to the images."""
    output("yolo", 0.4, "link").write(journal)
    out = tmp_path / "out"
    data = yaml.safe_load((out / "data.yaml").read_text())
    assert list(data["names"].values()) == LABELS
    found = []
    for part in ("train", "val"):
        folders = str(out / data[part]), str(out / data[part].replace("images", "labels"))
        read = sv.DetectionDataset.from_yolo(*folders, str(out / "data.yaml"))
        found.append(same(read, journal))
        assert all((out / data[part] / name).is_symlink() for name in found[-1])
    assert sorted(found[0] + found[1]) == NAMES
    assert all(found)


def test_voc_is_read_by_supervision(output: Make, journal: Journal, tmp_path: Path) -> None:
    output("voc", 0.4, "copy").write(journal)
    out = tmp_path / "out"
    read = sv.DetectionDataset.from_pascal_voc(str(out / "JPEGImages"), str(out / "Annotations"))
    # labels have no number in Pascal VOC; its reader sorts them
    for path, detections in read.annotations.items():
        np.testing.assert_array_equal(detections.xyxy, boxes(journal, Path(path).name))
    assert len(read) == len(NAMES)
    parts = [(out / f"ImageSets/Main/{part}.txt").read_text().split() for part in ("train", "val")]
    assert sorted(f"{stem}.png" for part in parts for stem in part) == NAMES
    assert not (out / "JPEGImages" / NAMES[0]).is_symlink()


def test_coco_is_read_by_pycocotools_and_supervision(
    output: Make, journal: Journal, pictures: Path, tmp_path: Path
) -> None:
    output("coco", 0.4).write(journal)
    found = []
    for part in ("train", "val"):
        path = tmp_path / "out" / f"{part}.json"
        assert [each["name"] for each in COCO(str(path)).dataset["categories"]] == LABELS
        names = [each["file_name"] for each in COCO(str(path)).dataset["images"]]
        assert names == sorted(names)
        read = sv.DetectionDataset.from_coco(str(pictures), str(path))
        assert sorted(same(read, journal)) == names
        found += names
    assert sorted(found) == NAMES


def test_masks_and_keypoints(output: Make, tmp_path: Path) -> None:
    """COCO polygons, YOLO segments, and YOLO poses of one length in the whole set."""
    journal = Journal(None, "")
    pixels = disc(SIZE, 20, 20, 9)
    points = [(1.0, 2.0, 2), (3.0, 4.0, 0)]
    journal.add(entry("00.png", 0, [masked("nut", 0.9, pixels, keypoints=points)]))
    journal.add(entry("01.png", 1, [masked("bolt", 0.8, pixels), *finds(2)]))
    output("coco-polygon").write(journal)
    coco = COCO(str(tmp_path / "out.json"))
    polygon = coco.loadAnns([1])[0]
    drawn = coco.annToMask(polygon) > 0
    assert (drawn & pixels).sum() / (drawn | pixels).sum() > 0.9
    assert polygon["keypoints"] == [1, 2, 2, 3, 4, 0]

    out = tmp_path / "out"
    output("yolo-seg").write(journal)
    read = sv.DetectionDataset.from_yolo(
        str(tmp_path / "pictures"), str(out / "labels/train"), str(out / "data.yaml"), True
    )
    (detections,) = (d for path, d in read.annotations.items() if path.endswith("00.png"))
    assert detections.mask is not None
    assert (np.asarray(detections.mask)[0] & pixels).sum() / pixels.sum() > 0.9

    output("yolo-pose").write(journal)
    assert yaml.safe_load((out / "data.yaml").read_text())["kpt_shape"] == [2, 3]
    lines = [
        line.split()
        for name in ("00", "01")
        for line in (out / f"labels/train/{name}.txt").read_text().splitlines()
    ]
    assert [len(line) for line in lines] == [5 + 2 * 3] * 4
    np.testing.assert_allclose(
        [float(number) for number in lines[0][5:]], [1 / 64, 2 / 48, 2, 0, 0, 0], atol=1e-6
    )
    journal.close()


def test_one_file_for_tools(output: Make, journal: Journal, tmp_path: Path) -> None:
    """CVAT, Label Studio, CSV and counts hold all images in one file."""
    path = tmp_path / "out.json"
    output("cvat").write(journal)
    root = ElementTree.parse(path).getroot()
    assert [image.get("name") for image in root.iter("image")] == NAMES
    assert [image.get("id") for image in root.iter("image")] == [str(n) for n in range(12)]
    assert [label.text for label in root.iterfind(".//label/name")] == LABELS
    for image in root.iter("image"):
        corners = [[float(b.get(s, "")) for s in ("xtl", "ytl", "xbr", "ybr")] for b in image]
        expected = boxes(journal, image.get("name", ""))
        np.testing.assert_array_equal(np.reshape(corners, (-1, 4)), expected)

    output("label-studio", prefix="/data/local-files/?d=").write(journal)
    tasks = json.loads(path.read_text())
    assert [task["data"]["image"] for task in tasks] == [f"/data/local-files/?d={n}" for n in NAMES]
    assert [len(t["predictions"][0]["result"]) for t in tasks] == [n % 4 for n in range(12)]

    output("csv").write(journal)
    rows = list(csv.DictReader(StringIO(path.read_text(), newline="")))
    assert len(rows) == sum(number % 4 for number in range(12))
    assert (rows[0]["image"], rows[0]["label"], float(rows[0]["score"])) == ("01.png", "nut", 0.9)

    output("counts").write(journal)
    rows = list(csv.DictReader(StringIO(path.read_text(), newline="")))
    assert list(rows[0]) == ["image", *LABELS]
    assert rows[3] == {"image": "03.png", "nut": "2", "bolt": "1"}


def test_one_file_for_each_image(output: Make, journal: Journal, tmp_path: Path) -> None:
    """LabelMe finds its images, and supervision takes Roboflow's answers."""
    output("labelme").write(journal)
    for name in NAMES:
        data = json.loads((tmp_path / "out" / name).with_suffix(".json").read_text())
        assert (tmp_path / "out" / data["imagePath"]).resolve() == tmp_path / "pictures" / name
    output("roboflow").write(journal)
    data = json.loads((tmp_path / "out/03.json").read_text())
    np.testing.assert_allclose(sv.Detections.from_inference(data).xyxy, boxes(journal, "03.png"))


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_number_of_writes_leave_no_trace(
    output: Make, journal: Journal, tmp_path: Path, kind: str
) -> None:
    """Written at once, or on the way in several steps, with one image annotated twice."""
    at_once = output(kind, 0.4)
    at_once.write(journal)
    whole = files(tmp_path / "out")
    for path in whole:
        (tmp_path / "out" / path).unlink()
    slowly = output(kind, 0.4)
    other = Journal(None, "")
    other.add(entry(NAMES[7], 6))
    for number in range(12):
        other.add(entry(NAMES[number], number))
        if number % 5 == 0:
            slowly.write(other)
    slowly.write(other)
    other.close()
    assert files(tmp_path / "out") == whole


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


def test_labels_that_nobody_announced_come_last(output: Make, tmp_path: Path) -> None:
    """And files that were written before are brought up to date."""
    journal = Journal(None, "")
    out = output("yolo-pose")
    journal.add(entry("00.png", 0, [Annotation("bolt", 1, (0, 0, 32, 24))]))
    out.write(journal)
    points = [(0.0, 0.0, 2)]
    journal.add(entry("01.png", 1, [Annotation("zz", 1, (0, 0, 32, 24), keypoints=points)]))
    journal.add(entry("02.png", 2, [Annotation("aa", 1, (0, 0, 32, 24))]))
    out.write(journal)
    data = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert list(data["names"].values()) == [*LABELS, "aa", "zz"]
    assert (tmp_path / "out/labels/train/00.txt").read_text().split()[0::8] == ["1"]
    assert (tmp_path / "out/labels/train/00.txt").read_text().endswith(" 0 0 0\n")
    journal.close()


def test_a_part_is_the_hash_of_the_picture_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    hashes = [rng.bytes(32).hex() for _ in range(2000)]
    parts = [part_of(each, 0.2) for each in hashes]
    assert 0.17 < parts.count("val") / 2000 < 0.23
    more = {each for each in hashes if part_of(each, 0.3) == "val"}
    assert {each for each, part in zip(hashes, parts, strict=True) if part == "val"} < more
    assert {part_of(each, 0) for each in hashes} == {"train"}


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    with atomic(path) as file:
        file.write(b"old")
    broken = atomic(path)
    broken.__enter__().write(b"half of the n")
    assert path.read_bytes() == b"old"
    assert not broken.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_large_set_is_written_in_little_memory(output: Make, tmp_path: Path) -> None:
    """Each image alone is in memory; the journal keeps a place for each, some hundred bytes."""
    import tracemalloc

    journal = Journal(None, "")
    many = [Annotation("nut", 0.5, (1, 2, 3, 4))] * 20
    result = msgspec.structs.replace(entry("x", 1).result, annotations=many)
    for number in range(300):
        journal.add(Entry(f"{number}.png", "1", "0" * 64, result))
    for kind in ("cvat", "label-studio"):
        tracemalloc.start()
        output(kind).write(journal)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < (tmp_path / "out.json").stat().st_size / 4
    journal.close()

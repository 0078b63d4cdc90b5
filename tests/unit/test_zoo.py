"""torchvision's detectors behind our stages, against torchvision's own calls.

The weights are random, with batch norms fitted to a photograph and classifiers sharpened until
there are finds. They lie in files as torchvision names them and are loaded the way that it does.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from skimage.data import astronaut
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model
from torchvision.ops import FrozenBatchNorm2d, batched_nms

from jobs.contract import MAIN_IMAGE, Annotation, Request
from jobs.problems import Problem
from worker.models import weights, zoo
from worker.models.base import Finds, Model, Pixels
from worker.models.detector import Prepared, TorchvisionDetector, largest_batch
from worker.models.families import Detections

CPU = torch.device("cpu")
SSDLITE = "ssdlite320_mobilenet_v3_large"
FASTER = "fasterrcnn_mobilenet_v3_large_320_fpn"
RETINA = "retinanet_resnet50_fpn"
MASK = "maskrcnn_resnet50_fpn"
KEYPOINT = "keypointrcnn_resnet50_fpn"
FCOS = "fcos_resnet50_fpn"

# How much sharper the random classifier must be before it finds something.
LAST_LAYERS = (
    "cls_score.weight",
    "cls_logits.weight",
    *(f"classification_head.module_list.{level}.1.weight" for level in range(6)),
)
SHARPER = {SSDLITE: 60, FASTER: 100, RETINA: 30, FCOS: 10, MASK: 10, KEYPOINT: 1}
FEWER = {MASK: 12, KEYPOINT: 5}  # finds an image, to save time
EVERYTHING = Request(min_score=0, max_annotations=3000)

# pycocotools' own array type is older than NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@dataclass
class Pair:
    """torchvision's own answers to `crops`, one call each, and our model from the same file."""

    wanted: list[Detections]
    ours: TorchvisionDetector


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def picture() -> Pixels:
    pixels: Pixels = astronaut()  # type: ignore[no-untyped-call]
    return pixels


def crops() -> list[Pixels]:
    """Three sizes. For a side of 160 the first two are padded to one shape."""
    whole = picture()
    return [
        np.ascontiguousarray(part)
        for part in (
            whole[:300, :400],
            whole[100:300, 60:340],
            whole[150:214, 200:264],
        )
    ]


def tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255


def random_network(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    options = {"num_classes": len(weights.published(name).meta["categories"]), **options}
    network: nn.Module = get_model(name, weights=None, weights_backbone=None, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # average over what it is shown
    with torch.no_grad():
        image = nn.functional.interpolate((tensor(picture())[None] - 0.45) / 0.225, (320, 320))
        network.train()
        network.backbone(torch.cat([image, image.flip(3)]))  # type: ignore[operator]
        for key, parameter in network.named_parameters():
            if key.endswith(LAST_LAYERS):
                parameter.mul_(SHARPER[name])
            if key.endswith("cls_logits.bias"):
                parameter.zero_()
            if name == FCOS and key.endswith("bbox_reg.bias"):
                parameter.fill_(3)  # boxes of some cells, that overlap
    return network.eval()


def torchvisions_own(
    name: str, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> nn.Module:
    """What torchvision's builder makes of its default weights, had they been `state`."""
    with monkeypatch.context() as patch:
        patch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
        network: nn.Module = get_model(name, weights="DEFAULT")
    return network.eval()


@pytest.fixture(scope="module", params=list(SHARPER))
def pair(request: pytest.FixtureRequest, folder: Path) -> Pair:
    name: str = request.param
    with pytest.MonkeyPatch.context() as monkeypatch:
        theirs: Any = torchvisions_own(name, random_network(name).state_dict(), monkeypatch)
    torch.save(theirs.state_dict(), weights.file_of(name, folder))
    ours = zoo.load(name, CPU, folder, exact=True)
    for transform in (theirs.transform, ours._transform):
        if transform.fixed_size is None:  # smaller, to save time
            transform.min_size, transform.max_size = (160,), 240
    for network in (theirs, ours._network):
        if name in FEWER:
            network.roi_heads.detections_per_img = FEWER[name]
    with torch.inference_mode():
        wanted = [theirs([tensor(image)])[0] for image in crops()]
    return Pair(wanted, ours)


def annotate(
    model: Model[Prepared, Detections], images: list[Pixels], request: Request, batched: bool
) -> list[list[Annotation]]:
    """What the worker does, with or without batching."""
    items = [model.prepare({MAIN_IMAGE: image}, request) for image in images]
    batches: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        batches.setdefault((model.bucket(item), None if batched else index), []).append(index)
    done: dict[int, list[Annotation]] = {}
    for batch in batches.values():
        raws = model.forward([items[index] for index in batch])
        for index, raw in zip(batch, raws, strict=True):
            finds = model.finish(raw, items[index])
            assert isinstance(finds, Finds)
            done[index] = finds.annotations
    return [done[index] for index in range(len(items))]


def decoded(annotation: Annotation) -> NDArray[np.bool_]:
    assert annotation.mask is not None
    rle = {"size": list(annotation.mask.size), "counts": annotation.mask.counts.encode()}
    mask: NDArray[np.bool_] = coco.decode(rle).astype(bool)
    return mask


def differences(
    got: list[Annotation], wanted: Detections, model: TorchvisionDetector
) -> dict[str, float]:
    """The largest difference of scores, boxes, mask pixels and keypoints.

    Finds are matched by label and nearest score and box: the order of equal scores is open.
    """
    labels = [model._classes[int(label)] for label in wanted["labels"]]
    boxes = wanted["boxes"]
    flat = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
    left = [i for i, label in enumerate(labels) if label is not None and not flat[i]]
    assert len(got) == len(left) > 0
    assert [a.score for a in got] == sorted((a.score for a in got), reverse=True)
    worst = {"score": 0.0, "box": 0.0, "mask": 0.0, "keypoints": 0.0}
    for annotation in got:
        box = torch.tensor(annotation.box)

        def distance(i: int, annotation: Annotation = annotation, box: Tensor = box) -> float:
            apart = float((boxes[i] - box).abs().max())
            return max(apart, abs(float(wanted["scores"][i]) - annotation.score))

        i = min((i for i in left if labels[i] == annotation.label), key=distance)
        left.remove(i)
        off = {
            "score": abs(float(wanted["scores"][i]) - annotation.score),
            "box": float((boxes[i] - box).abs().max()),
        }
        if annotation.mask is not None:
            probability = wanted["masks"][i, 0].numpy()
            wrong = decoded(annotation) != (probability > 0.5)
            off["mask"] = float(np.abs(probability[wrong] - 0.5).max(initial=0))
        if annotation.keypoints is not None:
            ours = torch.tensor(annotation.keypoints)
            seen = wanted["keypoints_scores"][i] > 0
            assert torch.equal(ours[:, 2], seen * 2.0)
            assert not ours[~seen].any()
            off["keypoints"] = float((ours - wanted["keypoints"][i])[seen, :2].abs().max())
            assert seen.any()
        worst = {key: max(value, off.get(key, 0)) for key, value in worst.items()}
    assert not left
    return worst


def everything(model: TorchvisionDetector) -> Request:
    return Request(outputs=tuple(model.info.outputs), min_score=0, max_annotations=3000)


@pytest.mark.parametrize("batched", [False, True])
def test_outputs_are_torchvisions_own(pair: Pair, batched: bool) -> None:
    """To 1e-4, or the last two digits of a float32 where coordinates are larger than 100."""
    got = annotate(pair.ours, crops(), everything(pair.ours), batched)
    for image, ours, theirs in zip(crops(), got, pair.wanted, strict=True):
        worst = differences(ours, theirs, pair.ours)
        assert max(worst["score"], worst["mask"]) <= 1e-4
        assert max(worst["box"], worst["keypoints"]) <= max(1e-4, 1e-6 * max(image.shape))


def test_only_what_is_asked_for_is_sent(pair: Pair) -> None:
    full, plain = (
        everything(pair.ours),
        msgspec.structs.replace(everything(pair.ours), outputs=("box",)),
    )
    got = annotate(pair.ours, crops()[2:], plain, batched=False)[0]
    assert got
    assert all(a.mask is None and a.keypoints is None for a in got)
    again = annotate(pair.ours, crops()[2:], full, batched=False)[0]
    assert [a.box for a in again] == [a.box for a in got]
    assert all(("mask" in full.outputs) == (a.mask is not None) for a in again)
    assert all(("keypoints" in full.outputs) == (a.keypoints is not None) for a in again)


def test_requests_narrow_the_finds_each_by_itself(pair: Pair) -> None:
    """Items of one batch with thresholds of their own; what is left out never reaches a head."""
    model, image = pair.ours, crops()[2]
    full = everything(model)
    scores = sorted(a.score for a in annotate(model, [image], full, batched=False)[0])
    _, below, above = max((high - low, low, high) for low, high in itertools.pairwise(scores))
    middle = (below + above) / 2
    requests = [
        full,
        msgspec.structs.replace(full, min_score=middle),
        msgspec.structs.replace(full, max_annotations=3),
        msgspec.structs.replace(full, nms_iou=0.1),
        msgspec.structs.replace(full, min_score=1),
    ]
    items = [model.prepare({MAIN_IMAGE: image}, request) for request in requests]
    assert len({model.bucket(item) for item in items}) == 1
    raws = model.forward(items)
    everyone, strong, three, apart, none = (
        model.finish(raw, item).annotations for raw, item in zip(raws, items, strict=True)
    )
    assert len(strong) == sum(a.score >= middle for a in everyone) < len(everyone)
    assert [a.score for a in strong] == pytest.approx([a.score for a in everyone[: len(strong)]])
    assert [a.score for a in three] == pytest.approx([a.score for a in everyone[:3]])
    assert none == []
    boxes = torch.tensor([a.box for a in everyone])
    labels = torch.tensor([model.info.labels.index(a.label) for a in everyone])
    keep = batched_nms(boxes, torch.tensor([a.score for a in everyone]), labels, 0.1)
    assert len(apart) == len(keep) < len(everyone)
    for key in ("masks", "keypoints"):
        if key in raws[0]:
            assert [len(raw[key]) for raw in raws[1:4]] == [len(strong), 3, len(apart)]


@pytest.fixture(scope="module")
def ssdlite(folder: Path) -> TorchvisionDetector:
    path = weights.file_of(SSDLITE, folder)
    if not path.exists():
        torch.save(random_network(SSDLITE).state_dict(), path)
    return zoo.load(SSDLITE, CPU, folder, exact=True)


@pytest.fixture(scope="module")
def faster(folder: Path) -> TorchvisionDetector:
    path = weights.file_of(FASTER, folder)
    if not path.exists():
        torch.save(random_network(FASTER).state_dict(), path)
    return zoo.load(FASTER, CPU, folder, exact=True)


def test_the_models_own_threshold_is_the_default(ssdlite: TorchvisionDetector) -> None:
    image = crops()[:1]
    asked = annotate(ssdlite, image, Request(min_score=ssdlite.info.min_score), batched=False)
    assert annotate(ssdlite, image, Request(), batched=False) == asked
    assert all(a.score >= ssdlite.info.min_score for a in asked[0])


def test_labels_leave_out_background_and_gaps(ssdlite: TorchvisionDetector) -> None:
    labels = ssdlite.info.labels
    assert len(labels) == 80
    assert labels[0] == "person"
    assert not {"N/A", "__background__"} & set(labels)
    found = annotate(ssdlite, crops(), EVERYTHING, batched=True)
    assert {a.label for each in found for a in each} <= set(labels)


def test_only_images_of_one_padded_shape_share_a_batch(pair: Pair) -> None:
    items = [pair.ours.prepare({MAIN_IMAGE: image}, EVERYTHING) for image in crops()]
    buckets = [pair.ours.bucket(item) for item in items]
    assert items[0].size != items[1].size or pair.ours._transform.fixed_size
    assert buckets[0] == buckets[1]
    assert pair.ours._transform.fixed_size or len(set(buckets)) == 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 600), (600, 1)])
def test_tiny_and_narrow_images_are_served(
    faster: TorchvisionDetector, shape: tuple[int, int]
) -> None:
    image = np.full((*shape, 3), 90, dtype=np.uint8)
    for a in annotate(faster, [image], EVERYTHING, batched=False)[0]:
        assert 0 <= a.box[0] < a.box[2] <= shape[1]
        assert 0 <= a.box[1] < a.box[3] <= shape[0]


def test_images_that_vanish_when_resized_are_refused(
    faster: TorchvisionDetector, ssdlite: TorchvisionDetector
) -> None:
    image = np.zeros((1, 5000, 3), dtype=np.uint8)
    with pytest.raises(Problem) as caught:
        faster.prepare({MAIN_IMAGE: image}, EVERYTHING)
    assert (caught.value.status, caught.value.code) == (422, "image_too_narrow")
    assert ssdlite.prepare({MAIN_IMAGE: image}, EVERYTHING).size == (320, 320)


def test_batches_are_as_large_as_the_device_gains_from(ssdlite: TorchvisionDetector) -> None:
    assert ssdlite.max_batch == largest_batch(CPU) == 4
    assert largest_batch(torch.device("cuda")) == 16


@pytest.mark.parametrize("name", zoo.names())
def test_networks_are_built_as_torchvision_builds_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen batch norms and their eps decide about the last digits, or about more."""
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
    with torch.device("meta"):
        theirs: Any = torchvisions_own(name, {}, monkeypatch)
        ours = zoo._build(name, len(zoo._classes_of(name)), theirs.state_dict(), published=True)
    assert norms(ours) == norms(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    settings = theirs.roi_heads if hasattr(theirs, "roi_heads") else theirs
    assert zoo.describe(name).nms_iou == settings.nms_thresh


def norms(network: nn.Module) -> dict[str, tuple[type, float]]:
    return {
        path: (type(module), module.eps)
        for path, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d)
    }

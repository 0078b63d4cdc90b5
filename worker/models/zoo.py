"""torchvision's detection, mask and keypoint models, under torchvision's own names.

Loaded with ``exact``, results equal those of the same model called by itself on the same image; the
fast way comes close, see docs/performance.md. Batching and the request's own thresholds only leave
things out. Class 0 is the background in all of them.
"""

from pathlib import Path

import torch
from torch import nn
from torchvision.models import detection, get_model, list_models
from torchvision.ops import FrozenBatchNorm2d

from jobs.contract import ModelInfo, Output
from worker.models import ModelUnavailable, weights
from worker.models.detector import TorchvisionDetector
from worker.models.weights import State, fetch

__all__ = ["TorchvisionDetector", "describe", "fetch", "load", "names"]

MIN_SCORE = 0.5

# By the beginning of the name: the parameter with one row (or so many rows) a class ...
_CLASSIFIERS = {
    "ssdlite": ("head.classification_head.module_list.0.1.weight", 6),
    "ssd300": ("head.classification_head.module_list.0.weight", 4),
    "retinanet": ("head.classification_head.cls_logits.weight", 9),
    "fcos": ("head.classification_head.cls_logits.weight", 1),
}
_RCNN_CLASSIFIER = ("roi_heads.box_predictor.cls_score.weight", 1)
_KEYPOINTS = "roi_heads.keypoint_predictor.kps_score_lowres.weight"
# ... and the overlap above which the model itself drops the weaker box of a class.
_NMS_IOU = {"ssdlite": 0.55, "ssd300": 0.45, "fcos": 0.6}

# torchvision freezes these backbones' batch norms when it loads its own weights, some without eps.
_FROZEN_EPS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": 1e-5,
    "fasterrcnn_mobilenet_v3_large_fpn": 1e-5,
    "fasterrcnn_resnet50_fpn": 0.0,
    "fcos_resnet50_fpn": 1e-5,
    "keypointrcnn_resnet50_fpn": 0.0,
    "maskrcnn_resnet50_fpn": 0.0,
    "retinanet_resnet50_fpn": 0.0,
}

_LICENCE = "Code: BSD-3-Clause (torchvision). Weights: "
_COCO = (
    "published by torchvision without terms of their own, trained on COCO "
    "(annotations CC BY 4.0, photographs under their authors' terms)."
)
_OWN = "yours."


def names() -> list[str]:
    """torchvision's names of the models."""
    listed: list[str] = list_models(module=detection)
    return listed


def describe(
    name: str, weights_dir: Path | None = None, checkpoint: Path | None = None
) -> ModelInfo:
    """What model `name` is and whether its weights are here. Builds no network.

    A checkpoint is read for its number of classes and its digest.
    """
    try:
        path = weights.find(name, weights_dir, checkpoint)
        classes = _own_classes(name, path, weights.read(path), None) if checkpoint else None
    except ModelUnavailable as error:
        version = "unknown" if checkpoint else weights.version_of(name, None)
        return _info(name, version, _classes_of(name), checkpoint, str(error))
    version = weights.version_of(name, checkpoint)
    return _info(name, version, classes or _classes_of(name), checkpoint)


def load(
    name: str,
    device: torch.device,
    weights_dir: Path | None = None,
    checkpoint: Path | None = None,
    labels: list[str] | None = None,
    *,
    exact: bool = False,
) -> TorchvisionDetector:
    """Build a model with its weights on `device`.

    Args:
        name: torchvision's name of the model.
        device: where `forward` runs.
        weights_dir: folder of torchvision's own weight files; torch's own one if None.
        checkpoint: own weights instead: a state dict, or one under the key "model", of
            torchvision's model of this name with any number of classes (or keypoints).
        labels: names of a checkpoint's classes, from class 1 on or from class 0 on. If None, the
            lines of ``NAME.labels.txt`` beside a checkpoint ``NAME.pth``; else "class 1", ...
        exact: prepare images as torchvision does, at several times the cost.

    Raises:
        ModelUnavailable: the weights are missing, do not fit the model, or are not plain weights.
    """
    path = weights.find(name, weights_dir, checkpoint)
    state = weights.read(path)
    classes = _own_classes(name, path, state, labels) if checkpoint else _classes_of(name)
    network = _build(name, len(classes), state, published=checkpoint is None)
    _fill(network, state, name, path)
    info = _info(name, weights.version_of(name, checkpoint), classes, checkpoint)
    return TorchvisionDetector(network.eval().to(device), info, classes, device, exact=exact)


def _info(
    name: str,
    version: str,
    classes: list[str | None],
    checkpoint: Path | None,
    problem: str | None = None,
) -> ModelInfo:
    outputs: list[Output] = ["box"]
    if name.startswith("maskrcnn"):
        outputs.append("mask")
    if name.startswith("keypointrcnn"):
        outputs.append("keypoints")
    return ModelInfo(
        name=name,
        version=version,
        labels=[label for label in classes if label is not None],
        tasks=["detect"],
        prompts=[],
        outputs=outputs,
        min_score=MIN_SCORE,
        nms_iou=next((iou for kind, iou in _NMS_IOU.items() if name.startswith(kind)), 0.5),
        licence=_LICENCE + (_OWN if checkpoint else _COCO),
        ready=problem is None,
        problem=problem,
    )


def _classes_of(name: str) -> list[str | None]:
    """Labels by class number; None for the background and the numbers that COCO skips."""
    _, *labels = weights.published(name).meta["categories"]
    return [None, *(None if label == "N/A" else label for label in labels)]


def _own_classes(name: str, path: Path, state: State, labels: list[str] | None) -> list[str | None]:
    """Labels by class number of a checkpoint, whose classifier tells how many there are."""
    kind = next((kind for kind in _CLASSIFIERS if name.startswith(kind)), None)
    key, rows = _CLASSIFIERS[kind] if kind else _RCNN_CLASSIFIER
    rows_found = state[key].shape[0] if key in state and state[key].dim() else 0
    number = rows_found // rows
    if rows_found % rows or number < 2:
        raise ModelUnavailable(f"{path} is not a checkpoint of {name}: no classifier at {key}.")
    file = path.with_suffix(".labels.txt")
    if labels is None and file.is_file():
        labels = file.read_text(encoding="utf-8").splitlines()
    labels = labels or [f"class {index}" for index in range(1, number)]
    if len(labels) == number:
        return list(labels)
    if len(labels) == number - 1:
        return [None, *labels]
    raise ModelUnavailable(
        f"{path} has {number - 1} classes and a background, but there are {len(labels)} labels."
    )


def _build(name: str, classes: int, state: State, *, published: bool) -> nn.Module:
    """The network without its weights, in the form in which it was trained."""
    has_keypoints = name.startswith("keypointrcnn") and _KEYPOINTS in state
    options = {"num_keypoints": state[_KEYPOINTS].shape[1]} if has_keypoints else {}
    network: nn.Module = get_model(
        name, weights=None, weights_backbone=None, num_classes=classes, **options
    )
    known_as_frozen = published and name in _FROZEN_EPS
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and (
            known_as_frozen or f"{path}.num_batches_tracked" not in state
        ):
            eps = _FROZEN_EPS.get(name, module.eps)
            network.set_submodule(path, FrozenBatchNorm2d(module.num_features, eps))
    return network


def _fill(network: nn.Module, state: State, name: str, path: Path) -> None:
    wanted = network.state_dict()
    frozen = [f"{at}." for at, m in network.named_modules() if isinstance(m, FrozenBatchNorm2d)]
    counters = {f"{at}num_batches_tracked" for at in frozen}
    missing = wanted.keys() - state.keys()
    unknown = state.keys() - wanted.keys() - counters
    unlike = {key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape}
    faults = [
        f"{len(keys)} {what} (such as {min(keys)})"
        for keys, what in [(missing, "missing"), (unknown, "unknown"), (unlike, "of another shape")]
        if keys
    ]
    if faults:
        raise ModelUnavailable(f"{path} does not fit model {name}: parameters {', '.join(faults)}.")
    network.load_state_dict(state)

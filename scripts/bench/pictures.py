"""What is measured with: real JPEGs, and weights that cost what trained ones cost."""

import io
from bisect import bisect
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (1280, 960)
JPEG_BYTES = 220_000  # the mean that is aimed at
DETECTOR = "ssdlite320_mobilenet_v3_large"
# what every request for the detector says: the most that an image of a busy street would give
WISH = {"model": DETECTOR, "min_score": 0.3, "max_annotations": 40}

_PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "coins")
_QUALITIES = range(80, 99)
_SPREAD, _BACKGROUND = 6.0, 4.0


def make_pictures(count: int) -> list[bytes]:
    """JPEGs of `SIZE`, cut from scikit-image's photographs, each in the quality that brings it
    closest to `JPEG_BYTES`.

    Raises:
        RuntimeError: their mean is more than a tenth off.
    """
    import skimage.data

    pictures = []
    for number in range(count):
        name = _PHOTOGRAPHS[number % len(_PHOTOGRAPHS)]
        photograph = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        shift = number // len(_PHOTOGRAPHS) * 5
        cut = photograph.crop((shift, shift, photograph.width, photograph.height - 60 + shift))
        resized = cut.resize(SIZE, Image.Resampling.BICUBIC)
        at = bisect(
            _QUALITIES, JPEG_BYTES, lo=1, hi=len(_QUALITIES) - 1, key=partial(_size, resized)
        )
        around = [_jpeg(resized, quality) for quality in _QUALITIES[at - 1 : at + 1]]
        pictures.append(min(around, key=lambda jpeg: abs(len(jpeg) - JPEG_BYTES)))
    mean = sum(map(len, pictures)) / count
    if abs(mean - JPEG_BYTES) > JPEG_BYTES / 10:
        raise RuntimeError(f"the pictures have {mean:.0f} bytes on average, not {JPEG_BYTES}")
    return pictures


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _size(image: Image.Image, quality: int) -> int:
    return len(_jpeg(image, quality))


def make_weights(path: Path, pictures: list[bytes]) -> None:
    """Write fixed-seed weights for `DETECTOR`, as a checkpoint that the worker loads.

    Batch norms are calibrated on `pictures`, so that activations have the sizes that they have in a
    trained network. The classifier's logits are spread and its background raised, until finds above
    a score of .3 number some tens or hundreds an image: they find nothing real.
    """
    import torch
    from torch import nn
    from torchvision.models import get_model

    torch.manual_seed(0)
    network = get_model(DETECTOR, weights=None, weights_backbone=None).eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over what it sees
        norm.train()
    side = network.transform.fixed_size
    images = [_tensor(Image.open(io.BytesIO(jpeg)).resize(side)) for jpeg in pictures]
    with torch.no_grad():
        batch, _ = network.transform(images)
        network.head(list(network.backbone(batch.tensors).values()))
        for *_, logits in network.head.classification_head.module_list:
            logits.weight.mul_(_SPREAD)
            logits.bias.mul_(_SPREAD).view(-1, 91)[:, 0].add_(_BACKGROUND)
    torch.save(network.state_dict(), path)


def _tensor(image: Image.Image) -> Any:
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)

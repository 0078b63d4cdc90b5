"""Which views of the images a search by example needs, at which scales."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from jobs.contract import MAIN_IMAGE, Box, BoxPrompt
from jobs.problems import unprocessable
from worker.models.base import Pixels
from worker.models.efficientnet_lite import STRIDE

_EXAMPLE = 64.0  # square root of an example's area at its working scale, in pixels
_RATIO = 1.6  # of the scales of neighbouring levels
_NEAR = (-1, 0, 1)  # levels searched round the example's own
_FAR = (-2, -1, 0, 1)  # the same for an example on another image, where sizes may differ more
_MAX_ZOOM = 3.0
_MAX_AREA = 1.3e6  # pixels of an example's own level
_MIN_SIDE = 32  # pixels of a view


@dataclass(frozen=True)
class View:
    """A rectangle of an image at some scale.

    Attributes:
        pixels: (1, 3, H, W) uint8, RGB, H and W multiples of 16.
        origin: (4,) the rectangle's upper left corner in the image as x, y, x, y.
        scale: (4,) view pixels per image pixel, in the same order.
    """

    pixels: Tensor
    origin: Tensor
    scale: Tensor

    def inward(self, boxes: Tensor) -> Tensor:
        """(N, 4) boxes from image to view pixels."""
        return (boxes - self.origin) * self.scale

    def outward(self, boxes: Tensor) -> Tensor:
        """(N, 4) boxes from view to image pixels, on the device of `boxes`."""
        return boxes / self.scale.to(boxes.device) + self.origin.to(boxes.device)


@dataclass(frozen=True)
class Example:
    """A prompt, cut out of its image with some surroundings.

    Attributes:
        view: the cut-out, at the scale of the level it was drawn on.
        box: (4,) in pixels of `view`.
        bounds: (4,) the whole image in pixels of `view`.
        levels: of the pyramid, on which its like is to be searched.
    """

    prompt: BoxPrompt
    view: View
    box: Tensor
    bounds: Tensor
    levels: tuple[int, ...]


def plan(
    images: Mapping[str, Pixels], prompts: Sequence[BoxPrompt]
) -> tuple[dict[int, View], list[Example]]:
    """Lay out the pyramid of the main image, and cut the examples.

    Each example wants to be searched at the scale that makes it 64 pixels wide, so that the
    backbone always sees objects of one size. All scales lie on one geometric grid, so that
    examples of different sizes share levels, and the work has a bound however many they are.

    Args:
        images: (H, W, 3) uint8 by part name.
        prompts: at least one that is not negative; boxes may reach outside a little.

    Returns:
        Views of the main image by level, and the examples in the order of `prompts`.

    Raises:
        Problem: 422, if a prompt lies on an image that was not sent or none is positive.
    """
    for prompt in prompts:
        if prompt.image not in images:
            raise unprocessable("image_missing", "A prompt names an image that was not sent.")
    main = images[MAIN_IMAGE]
    area = main.shape[0] * main.shape[1]
    limit = min(_MAX_ZOOM, math.sqrt(_MAX_AREA / area))
    boxes = [clip(prompt.box, images[prompt.image].shape) for prompt in prompts]
    own = [min(_MAX_ZOOM, _EXAMPLE / math.sqrt((x1 - x0) * (y1 - y0))) for x0, y0, x1, y1 in boxes]
    shown = sorted(
        min(limit, scale) for scale, prompt in zip(own, prompts, strict=True) if not prompt.negative
    )
    if not shown:
        raise unprocessable("prompt_missing", "At least one prompt must not be negative.")
    base = shown[len(shown) // 2]

    def level(scale: float) -> int:
        highest = math.floor(math.log(limit / base, _RATIO) + 1e-6)
        return min(highest, round(math.log(scale / base, _RATIO)))

    examples, used = [], set()
    for prompt, box, scale in zip(prompts, boxes, own, strict=True):
        levels: set[int] = set()
        if prompt.image == MAIN_IMAGE:
            centre = level(scale)
            scale = base * _RATIO**centre
            levels.update(centre + step for step in _NEAR)
        else:  # objects may have the same size in pixels, or the same share of the image
            pixels = images[prompt.image]
            share = scale * math.sqrt(pixels.shape[0] * pixels.shape[1] / area)
            levels.update(level(guess) + step for guess in (scale, share) for step in _FAR)
        if not prompt.negative:
            used |= levels
        examples.append(_cut(prompt, images[prompt.image], box, scale, tuple(sorted(levels))))
    whole = (0, 0, main.shape[1], main.shape[0])
    return {n: render(main, whole, base * _RATIO**n) for n in sorted(used)}, examples


def clip(box: Box, shape: tuple[int, ...]) -> Box:
    """The part of `box` within an image of that height and width, at least a pixel each way."""
    height, width = shape[:2]
    x0, y0 = min(max(box[0], 0.0), width - 1.0), min(max(box[1], 0.0), height - 1.0)
    return x0, y0, max(min(box[2], float(width)), x0 + 1), max(min(box[3], float(height)), y0 + 1)


def _cut(
    prompt: BoxPrompt, image: Pixels, box: Box, scale: float, levels: tuple[int, ...]
) -> Example:
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    margin = math.sqrt((x1 - x0) * (y1 - y0))
    across, down = max(margin, (x1 - x0) / 4), max(margin, (y1 - y0) / 4)
    window = (
        max(0, math.floor(x0 - across)),
        max(0, math.floor(y0 - down)),
        min(width, math.ceil(x1 + across)),
        min(height, math.ceil(y1 + down)),
    )
    view = render(image, window, scale)
    inward = view.inward(torch.tensor([box, (0.0, 0.0, width, height)]))
    return Example(prompt, view, inward[0], inward[1], levels)


def render(image: Pixels, window: tuple[int, int, int, int], scale: float) -> View:
    """Resize the window `x0, y0, x1, y1` of an image, with anti-aliasing.

    The sides are rounded to what the backbone takes, so the scale of the two axes may differ.
    """
    x0, y0, x1, y1 = window
    # A copy where the decoder's memory is not ours to write, because torch would warn of it.
    part = torch.from_numpy(np.require(image[y0:y1, x0:x1], requirements="W"))
    height, width = (
        max(_MIN_SIDE, round(side * scale / STRIDE) * STRIDE) for side in (y1 - y0, x1 - x0)
    )
    pixels = F.interpolate(
        part.permute(2, 0, 1)[None], (height, width), mode="bilinear", antialias=True
    )
    sx, sy = width / (x1 - x0), height / (y1 - y0)
    return View(
        pixels,
        torch.tensor([x0, y0, x0, y0], dtype=torch.float32),
        torch.tensor([sx, sy, sx, sy], dtype=torch.float32),
    )

"""Grounding DINO: words only.

Liu et al., "Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection"
(2023), through transformers. All texts become one, parted by dots, and the network says of each box
how well it fits each token. The best token of a text speaks for it.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from transformers.models.bert.tokenization_bert import BertTokenizer
from transformers.models.grounding_dino.image_processing_grounding_dino import (
    GroundingDinoImageProcessor,
)
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoForObjectDetection,
)

from jobs.contract import MAIN_IMAGE, ModelInfo, Request
from jobs.problems import unprocessable
from worker.models.base import Finds, Pixels
from worker.models.open_vocabulary import (
    NOT_MEANT,
    Pretrained,
    bfloat16,
    choose,
    labels_of,
    too_long,
    words,
)

_STOPS = ".?"  # part phrases, for the network


@dataclass(frozen=True)
class Item:
    """A picture and a text.

    Attributes:
        pixels: (3, H, W) float32, resized and normalised.
        size: width and height of the picture.
        tokens: (L,) int64 of all texts together.
        spans: (Q, L) bool, which tokens are a prompt's.
        owners: (Q) places of the prompts' labels, or `NOT_MEANT`.
    """

    request: Request
    pixels: Tensor
    size: tuple[int, int]
    tokens: Tensor
    spans: Tensor
    owners: list[int]


@dataclass(frozen=True)
class Raw:
    """On the CPU.

    Attributes:
        logits: (N, L) how well each box fits each token.
        boxes: (N, 4) centre, width and height in shares of the picture.
    """

    logits: Tensor
    boxes: Tensor


class GroundingDino(Pretrained):
    """Implements `worker.models.base.Model`."""

    classes = (GroundingDinoForObjectDetection, GroundingDinoImageProcessor, BertTokenizer)

    def __init__(self, folder: Path, info: ModelInfo, device: torch.device) -> None:
        super().__init__(folder, info, device)
        encoder = self._network.model.backbone.conv_encoder
        encoder.model = _Backbone(encoder.model, device)
        self._reads = int(self._network.config.max_text_len)

    def prepare(self, images: Mapping[str, Pixels], request: Request) -> Item:
        """Resize and normalise the picture, join the texts.

        Raises:
            Problem: 422, if a text does not fit, or the picture is too narrow.
        """
        labels = labels_of(request)
        owners = [NOT_MEANT if p.negative else labels.index(p.label) for p in request.prompts]
        tokens, spans = self._tokens(request)
        pixels = images[MAIN_IMAGE]
        height, width = pixels.shape[:2]
        edges = self._processor.size
        short, long = sorted((height, width))
        if short * min(edges["shortest_edge"] / short, edges["longest_edge"] / long) < 1:
            raise unprocessable(
                "image_too_narrow",
                f"Model {self.info.name} takes images of up to {edges['longest_edge']} : 1, this "
                f"one has {width} x {height} pixels. Crop it.",
            )
        picture = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)
        prepared = self._processor(picture, input_data_format="channels_first", return_tensors="pt")
        return Item(request, prepared["pixel_values"][0], (width, height), tokens, spans, owners)

    def _tokens(self, request: Request) -> tuple[Tensor, Tensor]:
        """One text of all prompts, in lower case as the network was trained, each ended by a dot.

        Dots in a prompt part it into phrases, which all stand for its label.
        """
        text, ends = "", []
        for number in range(len(request.prompts)):
            phrase = words(request, number).lower().rstrip(" .?")
            text += f"{phrase}. "
            ends.append(len(text))
        text = text.rstrip()
        with self._tokenizing:
            found = self._tokenizer(text, return_offsets_mapping=True)
        ids, offsets = found["input_ids"], found["offset_mapping"]
        spans = torch.zeros(len(ends), len(ids), dtype=torch.bool)
        for token, (start, end) in enumerate(offsets):
            if text[start:end].strip(_STOPS):  # neither a stop nor one of the tokens at the ends
                spans[sum(start >= at for at in ends), token] = True
        if len(ids) > self._reads:
            first = int(spans[:, self._reads - 1 :].any(1).float().argmax())
            raise too_long(self.info.name, first, len(ids), self._reads)
        if not spans.any(1).all():
            words_missing = int((~spans.any(1)).float().argmax())
            raise unprocessable(
                "text_empty",
                f"$.prompts[{words_missing}].text holds no word that the model knows.",
            )
        return torch.tensor(ids), spans

    def bucket(self, item: Item) -> Hashable:
        """Size of the picture and number of tokens: so nothing is padded, and padding would reach
        into the results."""
        return item.pixels.shape, item.tokens.shape

    @torch.inference_mode()
    def forward(self, items: list[Item]) -> list[Raw]:
        """Run the network."""
        pixels = torch.stack([item.pixels for item in items])
        if self._device.type == "cuda":
            pixels = pixels.pin_memory()
        tokens = torch.stack([item.tokens for item in items]).to(self._device)
        found = self._network(pixels.to(self._device, non_blocking=True), tokens)
        logits = found.logits[..., : tokens.shape[1]].float().cpu()
        boxes = found.pred_boxes.float().cpu()
        return [Raw(*each) for each in zip(logits, boxes, strict=True)]

    def finish(self, raw: Raw, item: Item) -> Finds:
        """What was asked for, in pixels of the picture."""
        fits = raw.logits.sigmoid()[:, None].where(item.spans, 0).amax(2)
        boxes = box_convert(raw.boxes, "cxcywh", "xyxy") * torch.tensor(item.size * 2)
        return choose(boxes, fits, item.owners, {}, item.size, item.request, self.info)


class _Backbone(nn.Module):
    """The Swin transformer in half precision where the device has it. What follows samples and
    moves boxes, and needs more digits."""

    def __init__(self, inner: nn.Module, device: torch.device) -> None:
        super().__init__()
        self._inner = inner
        self._device = device

    def forward(self, *arguments: Any, **options: Any) -> Any:
        with bfloat16(self._device):
            found = self._inner(*arguments, **options)
        found.feature_maps = tuple(each.float() for each in found.feature_maps)
        return found

"""OWLv2: words, examples, or both, for one label.

Minderer et al., "Scaling Open-Vocabulary Object Detection" (2023), through transformers. The
network describes each patch of a picture by a vector and a box. What is looked for is a vector of
the same space: a text's, or that of the patch whose box fits the user's best. All patches are
scored with all vectors, and the best vector of a label speaks for it: so text and examples go
together.
"""

import struct
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from torchvision.transforms.v2.functional import resize
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.owlv2.image_processing_owlv2 import Owlv2ImageProcessor
from transformers.models.owlv2.modeling_owlv2 import Owlv2ForObjectDetection

from jobs.contract import (
    MAIN_IMAGE,
    Box,
    BoxPrompt,
    EmbeddingPrompt,
    ModelInfo,
    PointPrompt,
    Request,
    TextPrompt,
)
from jobs.problems import unprocessable
from worker.models import hub, portable
from worker.models.base import Embedding, Finds, Pixels
from worker.models.open_vocabulary import (
    NOT_MEANT,
    Pretrained,
    bfloat16,
    choose,
    labels_of,
    too_long,
    words,
)

# Patches are far more like a patch than like any text. transformers' example takes a score of .9
# where it shows an image and .1 where it writes words: so much is the logit of an example lowered,
# and one threshold means the same for both.
_EXAMPLES_RUN_HIGH = 2 * float(np.log(0.9 / 0.1))
_MAGIC = b"MFO"
_MOST_SHRUNK = 2.0  # times; what is larger is made smaller before it is squared


@dataclass(frozen=True)
class Query:
    """Something to look for.

    Attributes:
        place: of its label, or `NOT_MEANT`.
        is_text: words, or an embedding of words.
        tokens: (L,) int64 of words.
        vector: (D,) float32 of an embedding.
        prompt: a box or point.
    """

    place: int
    is_text: bool = False
    tokens: Tensor | None = None
    vector: Tensor | None = None
    prompt: BoxPrompt | PointPrompt | None = None


@dataclass(frozen=True)
class Squared:
    """A picture as the network takes it: (3, S, S) float32, the picture at its top left.

    Attributes:
        scale: pixels of the picture in the square's width and height.
        size: width and height of the picture.
    """

    pixels: Tensor
    scale: tuple[float, float]
    size: tuple[int, int]


@dataclass(frozen=True)
class Item:
    request: Request
    images: dict[str, Squared]
    queries: list[Query]


@dataclass(frozen=True)
class Seen:
    """What the network makes of one picture, on its device.

    Attributes:
        features: (P, F) of its patches, row by row.
        boxes: (P, 4) x0, y0, x1, y1 in sides of the square.
    """

    features: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Scored:
    """On the CPU; for ``task: "embed"`` only the embedding.

    Attributes:
        boxes: (P, 4) in pixels of the picture; may reach outside.
        scores: (P, Q).
        given: boxes of the prompts on the main image.
    """

    boxes: Tensor
    scores: Tensor
    given: dict[Box, int]
    embedding: str = ""


class Owlv2(Pretrained):
    """Implements `worker.models.base.Model`."""

    classes = (Owlv2ForObjectDetection, Owlv2ImageProcessor, CLIPTokenizer)

    def __init__(self, folder: Path, info: ModelInfo, device: torch.device) -> None:
        super().__init__(folder, info, device)
        self._identity = hub.Weights(folder, None).digest()[:8]
        self._reads = int(self._network.config.text_config.max_position_embeddings)
        self._record = struct.Struct(f"<?{self._network.config.text_config.hidden_size}f")

    def prepare(self, images: Mapping[str, Pixels], request: Request) -> Item:
        """Square the pictures that are needed, and turn words into tokens.

        Raises:
            Problem: 422, if a text or an embedding does not fit.
        """
        labels = labels_of(request)
        if request.task == "embed" and (
            len(labels) > 1
            or any(p.negative or isinstance(p, EmbeddingPrompt) for p in request.prompts)
        ):
            raise unprocessable(
                "prompt_unsupported",
                "An embedding is made of boxes, points or words of one label, none of them "
                "negative. Embed other labels and look-alikes by requests of their own.",
            )
        queries: list[Query] = []
        for number, prompt in enumerate(request.prompts):
            place = NOT_MEANT if prompt.negative else labels.index(prompt.label)
            if isinstance(prompt, TextPrompt):
                tokens = self._tokens(words(request, number), number)
                queries.append(Query(place, is_text=True, tokens=tokens))
            elif isinstance(prompt, EmbeddingPrompt):
                queries += self._unpacked(prompt.data, place)
            else:
                queries.append(Query(place, prompt=prompt))
        needed = {query.prompt.image for query in queries if query.prompt}
        if request.task == "detect":
            needed.add(MAIN_IMAGE)
        return Item(request, {name: self._squared(images[name]) for name in needed}, queries)

    def _tokens(self, text: str, number: int) -> Tensor:
        with self._tokenizing:
            found = self._tokenizer(text, padding="max_length", max_length=self._reads)
        if len(found["input_ids"]) > self._reads:
            raise too_long(self.info.name, number, len(found["input_ids"]), self._reads)
        return torch.tensor([found["input_ids"], found["attention_mask"]])

    def _unpacked(self, text: str, place: int) -> list[Query]:
        queries = []
        for record in portable.read(text, _MAGIC, self._identity, self._record.size):
            is_text, *numbers = self._record.unpack(record)
            vector = torch.tensor(numbers)
            if not (vector.isfinite().all() and vector.any()):
                raise portable.invalid("holds numbers that no example has")
            queries.append(Query(place, is_text=is_text, vector=vector))
        return queries

    def _squared(self, pixels: Pixels) -> Squared:
        """As transformers does it: pad at the right and below, blur, resize, normalise.

        That takes the square of the longer side in float32, a gigabyte for a panorama, so a picture
        much larger than the network's input is made smaller first.
        """
        picture = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)
        height, width = picture.shape[1:]
        factor = _MOST_SHRUNK * self._processor.size["height"] / max(height, width)
        if factor < 1:
            small = [max(1, round(side * factor)) for side in (height, width)]
            picture = resize(picture, small, antialias=True)
        side = max(picture.shape[1:])
        squared = self._processor(picture, input_data_format="channels_first", return_tensors="pt")
        scale = side * width / picture.shape[2], side * height / picture.shape[1]
        return Squared(squared["pixel_values"][0], scale, (width, height))

    def bucket(self, item: Item) -> Hashable:
        """All pictures have one size."""
        return ()

    @torch.inference_mode()
    def forward(self, items: list[Item]) -> list[Scored]:
        """Score each item's picture with its queries. The batch's pictures are seen together."""
        pictures = [squared for item in items for squared in item.images.values()]
        seen = iter(self._look(pictures))
        texts = iter(self._read([q.tokens for item in items for q in item.queries]))
        answers = []
        for item in items:
            by_part = {name: next(seen) for name in item.images}
            answers.append(self._answer(item, by_part, texts))
        return answers

    def _look(self, pictures: list[Squared]) -> list[Seen]:
        """The transformer in half precision where the device has it, the heads in full: boxes need
        more digits than bfloat16 has."""
        seen: list[Seen] = []
        for at in range(0, len(pictures), self.max_batch):
            batch = torch.stack([one.pixels for one in pictures[at : at + self.max_batch]])
            if self._device.type == "cuda":
                batch = batch.pin_memory()
            batch = batch.to(self._device, non_blocking=True)
            with bfloat16(self._device):
                grid, _ = self._network.image_embedder(batch)
            grid = grid.float()
            features = grid.flatten(1, 2)
            boxes = box_convert(self._network.box_predictor(features, grid), "cxcywh", "xyxy")
            seen += [Seen(*each) for each in zip(features, boxes, strict=True)]
        return seen

    def _read(self, tokens: list[Tensor | None]) -> list[Tensor]:
        """(D,) for each text."""
        texts = [each for each in tokens if each is not None]
        if not texts:
            return []
        ids, mask = torch.stack(texts).to(self._device).unbind(1)
        return list(self._network.owlv2.get_text_features(ids, attention_mask=mask).pooler_output)

    def _answer(self, item: Item, seen: dict[str, Seen], texts: Any) -> Scored:
        vectors: list[Tensor] = []
        given: dict[Box, int] = {}  # of labels that claim the same box, the first has it
        for query in item.queries:
            if query.tokens is not None:
                vectors.append(next(texts))
            elif query.vector is not None:
                vectors.append(query.vector.to(self._device))
            elif query.prompt is not None:
                part = query.prompt.image
                patch = self._patch(query.prompt, seen[part], item.images[part])
                vectors.append(self._described(seen[part])[patch])
                if part == MAIN_IMAGE:
                    box = seen[part].boxes[patch].tolist()
                    given.setdefault(_drawn(query.prompt, box, item.images[part]), query.place)
        queries = torch.stack(vectors)
        if item.request.task == "embed":
            empty = torch.empty(0)
            return Scored(empty, empty, {}, self._packed(item.queries, queries))
        main = seen[MAIN_IMAGE]
        logits, _ = self._network.class_predictor(main.features[None], queries[None])
        lowered = [0.0 if query.is_text else _EXAMPLES_RUN_HIGH for query in item.queries]
        scores = (logits[0] - torch.tensor(lowered, device=self._device)).sigmoid()
        scale = torch.tensor(item.images[MAIN_IMAGE].scale * 2, device=self._device)
        return Scored((main.boxes * scale).cpu(), scores.cpu(), given)

    def _described(self, seen: Seen) -> Tensor:
        """(P, D): what the patches would have to be called, not normalised."""
        _, described = self._network.class_predictor(seen.features[None])
        vectors: Tensor = described[0]
        return vectors

    def _patch(self, prompt: BoxPrompt | PointPrompt, seen: Seen, picture: Squared) -> int:
        """The patch that saw what the user shows.

        For a box, the one whose own box overlaps it most. For a point, of those whose boxes hold it
        the one that is most sure of being an object (the network's objectness). If there is none,
        the patch that lies there.
        """
        width, height = picture.scale
        if isinstance(prompt, BoxPrompt):
            x0, y0, x1, y1 = prompt.box
            box = torch.tensor([[x0 / width, y0 / height, x1 / width, y1 / height]])
            fits = box_iou(seen.boxes, box.to(seen.boxes))[:, 0]
            x, y = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height
        else:
            x, y = prompt.point[0] / width, prompt.point[1] / height
            at = torch.tensor([x, y]).to(seen.boxes)
            inside = ((seen.boxes[:, :2] <= at) & (at <= seen.boxes[:, 2:])).all(1)
            fits = self._network.objectness_predictor(seen.features[None])[0].sigmoid() * inside
        if fits.max() > 0:
            return int(fits.argmax())
        rows = round(len(fits) ** 0.5)
        row, column = (min(rows - 1, max(0, int(at * rows))) for at in (y, x))
        return int(row * rows + column)

    def _packed(self, queries: list[Query], vectors: Tensor) -> str:
        vectors = torch.nn.functional.normalize(vectors, dim=-1).cpu()
        return portable.write(
            _MAGIC,
            self._identity,
            [
                self._record.pack(query.is_text, *vector.tolist())
                for query, vector in zip(queries, vectors, strict=True)
            ],
        )

    def finish(self, raw: Scored, item: Item) -> Finds | Embedding:
        """What was asked for, in pixels of the picture; the user's own boxes have score 1."""
        if item.request.task == "embed":
            return Embedding(raw.embedding)
        owners = [query.place for query in item.queries]
        size = item.images[MAIN_IMAGE].size
        return choose(raw.boxes, raw.scores, owners, raw.given, size, item.request, self.info)


def _drawn(prompt: BoxPrompt | PointPrompt, box: list[float], picture: Squared) -> Box:
    """A box as the user drew it; of a point what its patch takes it for."""
    if isinstance(prompt, BoxPrompt):
        return prompt.box
    width, height = picture.scale
    x0, y0, x1, y1 = box
    return x0 * width, y0 * height, x1 * width, y1 * height

"""What the open-vocabulary models share: parts, words, precision, and the choice among finds."""

from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from jobs.contract import Annotation, Box, ModelInfo, Request, TextPrompt
from jobs.problems import Problem, unprocessable
from worker.models import hub
from worker.models.base import Finds

NOT_MEANT = -1  # in place of a label's place: what negative prompts find
_GIVEN = 2.0  # the score of a box that the user drew, above all that a model can say
_ACROSS_LABELS = 0.6  # IoU from which two labels claim one object


class Pretrained:
    """A network of transformers, and what prepares pictures and words for it.

    Args:
        folder: as `save_pretrained` writes it, or as it is published.
        info: what users see.
        device: where `forward` runs.
    """

    classes: tuple[Any, Any, Any]  # of the network, its image processor and its tokenizer

    def __init__(self, folder: Path, info: ModelInfo, device: torch.device) -> None:
        network, processor, tokenizer = self.classes
        self.info = info
        self.max_batch = 1 if device.type == "cpu" else 8
        self._device = device
        self._network: Any = hub.complete(network, folder).to(device)
        self._processor: Any = processor.from_pretrained(folder, local_files_only=True)
        self._tokenizer: Any = tokenizer.from_pretrained(folder, local_files_only=True)
        self._tokenizing = Lock()  # tokenizers keep their padding in a state of their own


def labels_of(request: Request) -> list[str]:
    """The distinct labels of what is meant, in their order."""
    return list(dict.fromkeys(p.label for p in request.prompts if not p.negative))


def words(request: Request, number: int) -> str:
    """The text of prompt `number`, without blanks around it.

    Raises:
        Problem: 422 ``text_empty``, if there is nothing but blanks.
    """
    prompt = request.prompts[number]
    text = " ".join(prompt.text.split()) if isinstance(prompt, TextPrompt) else ""
    if not text.strip(" .?"):
        raise unprocessable(
            "text_empty", f"$.prompts[{number}].text holds no word. Say what to look for."
        )
    return text


def too_long(model: str, number: int, tokens: int, most: int) -> Problem:
    return unprocessable(
        "text_too_long",
        f"With $.prompts[{number}].text there are {tokens} tokens, and model {model} reads {most}. "
        "Use fewer words.",
    )


def bfloat16(device: torch.device) -> AbstractContextManager[object]:
    """Half the bits inside, on GPUs that are made for it; elsewhere nothing changes."""
    fits = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=fits)


def choose(
    boxes: Tensor,
    scores: Tensor,
    owners: list[int],
    given: dict[Box, int],
    size: tuple[int, int],
    request: Request,
    info: ModelInfo,
) -> Finds:
    """Annotations of scored boxes.

    A box belongs to the query that fits it best. Duplicates of one label go by `nms_iou`; an object
    that several labels claim goes to the best of them, and what is not meant takes part in that.

    Args:
        boxes: (N, 4) x0, y0, x1, y1 in pixels of the image; may reach outside.
        scores: (N, Q) by query, 0 to 1.
        owners: (Q) places of the queries' labels, or `NOT_MEANT`.
        given: boxes that the user drew on this image; those of a label are finds of score 1.
        size: width and height of the image.
    """
    labels = labels_of(request)
    least = info.min_score if request.min_score is None else request.min_score
    iou = info.nms_iou if request.nms_iou is None else request.nms_iou
    best, query = scores.max(1)
    places = torch.tensor(owners)[query]
    wanted = best >= least
    boxes = torch.cat([torch.tensor(list(given), dtype=torch.float32).view(-1, 4), boxes[wanted]])
    best = torch.cat([torch.full((len(given),), _GIVEN), best[wanted]])
    places = torch.cat([torch.tensor(list(given.values()), dtype=torch.int64), places[wanted]])
    edge = torch.tensor([*size, *size], dtype=torch.float32)
    boxes = torch.minimum(boxes.clamp(min=0), edge)
    order = ((boxes[:, 2:] > boxes[:, :2]).all(1)).nonzero()[:, 0]
    order = order[batched_nms(boxes[order], best[order], places[order], iou)]
    order = order[nms(boxes[order], best[order], max(iou, _ACROSS_LABELS))]
    order = order[places[order] != NOT_MEANT][: request.max_annotations]
    return Finds(
        [
            Annotation(labels[place], min(1.0, score), (x0, y0, x1, y1))
            for place, score, (x0, y0, x1, y1) in zip(
                places[order].tolist(), best[order].tolist(), boxes[order].tolist(), strict=True
            )
        ]
    )

"""Between the CPU and a model's device: images there while it works, finds back at once.

On a CPU nothing moves. On CUDA each image is copied from pinned memory on a stream of its own, by
the thread that prepared it, so that the copies for the next batch and the forward of this one
overlap.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from worker.models.families import Detections


class Uploaded(NamedTuple):
    """A tensor on its way to the device."""

    tensor: Tensor
    arrived: Any = None  # torch.cuda.Event; None if it is there


class Uploads:
    """Sends tensors to `device`. Any thread may."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tensor: Tensor) -> Uploaded:
        """Begin the copy of a CPU tensor, and do not wait for it."""
        if self._stream is None:
            return Uploaded(tensor.to(self._device))
        with torch.cuda.stream(self._stream):
            sent = tensor.pin_memory().to(self._device, non_blocking=True)
            return Uploaded(sent, self._stream.record_event())

    def stack(self, uploaded: list[Uploaded]) -> Tensor:
        """One batch of tensors of the same shape, on the device, once they are there."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            for tensor, arrived in uploaded:
                current.wait_event(arrived)
                tensor.record_stream(current)  # its memory is not reused before the batch is made
        return torch.stack([each.tensor for each in uploaded])


def fetch(found: list[Detections]) -> list[Detections]:
    """Bring the finds of a batch to the CPU, all in one transfer."""
    rows = [torch.cat([v.flatten(1).float() for v in map(_column, d.values())], 1) for d in found]
    fetched = torch.split(torch.cat(rows).cpu(), [len(row) for row in rows])
    return [_unpack(row, each) for row, each in zip(fetched, found, strict=True)]


def _column(values: Tensor) -> Tensor:
    return values[:, None] if values.dim() == 1 else values


def _unpack(row: Tensor, like: Detections) -> Detections:
    widths = [_column(value).flatten(1).shape[1] for value in like.values()]
    parts = zip(like.items(), torch.split(row, widths, 1), strict=True)
    return {key: part.reshape(value.shape).to(value.dtype) for (key, value), part in parts}

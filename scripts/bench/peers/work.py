"""What the peers' servers do with an image. Runs in their environments."""

import io
import os
from pathlib import Path
from typing import Any, Protocol

import msgspec

from scripts.bench.pictures import DETECTOR, WISH

BATCH = int(os.environ.get("PEER_BATCH", "1"))
PORT = int(os.environ.get("PEER_PORT", "0"))
PATIENCE_S = 60  # of a server for one request


class Work(Protocol):
    """Two stages; where a server has one, it runs them one after the other."""

    def decode(self, data: bytes) -> Any: ...

    def run(self, items: list[Any]) -> list[str]:
        """JSON of each item's finds."""


class Nothing:
    """No model, and images that nobody decodes."""

    def decode(self, data: bytes) -> int:
        return len(data)

    def run(self, items: list[int]) -> list[str]:
        return ["{}"] * len(items)


class Same:
    """The model's code of this project, as its worker runs it."""

    def __init__(self) -> None:
        from jobs.contract import Request
        from jobs.settings import Settings
        from worker.main import load_models

        self._settings = Settings.from_env()
        self._model = load_models(self._settings)[0][DETECTOR]
        self._request = msgspec.convert(WISH, Request)

    def decode(self, data: bytes) -> Any:
        from jobs.contract import MAIN_IMAGE
        from worker.decode import decode

        pixels = decode(data, self._settings.max_pixels)
        return self._model.prepare({MAIN_IMAGE: pixels}, self._request)

    def run(self, items: list[Any]) -> list[str]:
        raws = self._model.forward(items)
        finds = [self._model.finish(raw, item) for raw, item in zip(raws, items, strict=True)]
        return [msgspec.json.encode(each).decode() for each in finds]


class Plain:
    """torchvision as its documentation uses it: Pillow, a float image, the network."""

    def __init__(self) -> None:
        import torch
        from torchvision.models import get_model

        self._network = get_model(DETECTOR, weights=None, weights_backbone=None).eval()
        path = Path(os.environ["MAYFLY_CHECKPOINTS"].partition("=")[2])
        self._network.load_state_dict(torch.load(path, weights_only=True))

    def decode(self, data: bytes) -> Any:
        from PIL import Image
        from torchvision.transforms.functional import to_tensor

        return to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))

    def run(self, items: list[Any]) -> list[str]:
        import torch

        with torch.inference_mode():
            found = self._network(items)
        return [self._json(each) for each in found]

    def _json(self, found: dict[str, Any]) -> str:
        keep = (found["scores"] >= WISH["min_score"]).nonzero()[: WISH["max_annotations"], 0]
        return msgspec.json.encode({name: v[keep].tolist() for name, v in found.items()}).decode()


def make() -> Work:
    """The work that the environment names."""
    kinds: dict[str, type[Work]] = {"nothing": Nothing, "same": Same, "plain": Plain}
    return kinds[os.environ["PEER_WORK"]]()

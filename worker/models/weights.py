"""Where trained weights come from: torchvision's own files, or a checkpoint of one's own.

Nothing is downloaded unless `fetch` is called, and no file is trusted to run code.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights

from worker.models import ModelUnavailable

State = Mapping[str, Tensor]


def published(name: str) -> WeightsEnum:
    """The weights that torchvision recommends for model `name`."""
    weights: WeightsEnum = get_model_weights(name)["DEFAULT"]
    return weights


def file_of(name: str, weights_dir: Path | None) -> Path:
    """Where torchvision's own weights of `name` lie, whether they are there or not.

    Args:
        name: torchvision's name of the model.
        weights_dir: the folder; torch's own one if None.
    """
    folder = weights_dir or Path(torch.hub.get_dir()) / "checkpoints"
    return folder / Path(urlparse(published(name).url).path).name


def find(name: str, weights_dir: Path | None, checkpoint: Path | None) -> Path:
    """The file to load for `name`.

    Raises:
        ModelUnavailable: there is none; the text says how to get one.
    """
    path = checkpoint or file_of(name, weights_dir)
    if path.is_file():
        return path
    if checkpoint:
        raise ModelUnavailable(f"The checkpoint of model {name} is not there: {checkpoint}.")
    raise ModelUnavailable(
        f"Model {name} has no weights here ({path}). Run `mayfly models fetch {name}` where the "
        f"network allows, copy the file there, or set MAYFLY_CHECKPOINTS={name}=PATH to your own."
    )


def read(path: Path) -> State:
    """Read a state dict, or one under the key "model", onto the CPU.

    Raises:
        ModelUnavailable: the file holds anything else, such as objects that would run code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch, zipfile and pickle raise many kinds here
        raise ModelUnavailable(
            f"{path} cannot be read as plain weights. Save it with torch.save(model.state_dict(), "
            "PATH); files that hold Python objects are refused, because loading them runs code."
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not (
        isinstance(content, Mapping)
        and content
        and all(isinstance(value, Tensor) for value in content.values())
    ):
        raise ModelUnavailable(
            f'{path} holds no state dict, neither by itself nor under the key "model".'
        )
    return content


def version_of(name: str, checkpoint: Path | None) -> str:
    """The name of torchvision's weights such as COCO_V1, or the digest of a checkpoint."""
    if checkpoint is None:
        return str(published(name).name)
    return "sha256:" + digest(checkpoint)[:12]


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        hexadecimal: str = hashlib.file_digest(file, "sha256").hexdigest()
    return hexadecimal


def fetch(name: str, weights_dir: Path | None) -> Path:
    """Download torchvision's own weights with torchvision's own code, and check them.

    The file appears under its name once it is complete and its digest fits. A file that is already
    there is kept if its digest fits, and replaced if not.

    Args:
        name: torchvision's name of the model.
        weights_dir: folder to put it in, made if needed; torch's own one if None.

    Returns:
        The file's path.

    Raises:
        ModelUnavailable: the download failed or is not what torchvision published.
    """
    path = file_of(name, weights_dir)
    if path.is_file() and not _as_published(path):
        path.unlink()
    try:
        published(name).get_state_dict(
            model_dir=str(path.parent),
            map_location="cpu",
            progress=True,
            check_hash=True,
            weights_only=True,
        )
    except Exception as error:  # urllib, torch.hub and torch.load raise many kinds here
        raise ModelUnavailable(
            f"The weights of {name} could not be fetched ({error}). Copy {path.name} to "
            f"{path.parent} from a machine that can."
        ) from error
    return path


def _as_published(path: Path) -> bool:
    """Whether a file has the digest that torchvision writes at the end of its weights' names."""
    start = re.search(r"-([0-9a-f]{8,})\.", path.name)
    return start is None or digest(path).startswith(start[1])

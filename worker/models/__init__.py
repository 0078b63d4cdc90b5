"""The registry: which models there are, and how to load one by name.

Asking for names costs nothing; torch is imported when a model is described, fetched or loaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.contract import ModelInfo
from worker.models.base import Model

if TYPE_CHECKING:
    import torch

EXEMPLAR = "exemplar"
TORCHVISION = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
OPEN_VOCABULARY = ("owlv2", "grounding-dino")


class ModelUnavailable(Exception):
    """A model or device that was asked for cannot be had here; the text says what to do."""


def names() -> list[str]:
    """All models by name, the default one first."""
    return [EXEMPLAR, *TORCHVISION, *OPEN_VOCABULARY]


def check_known(*asked: str) -> None:
    """Refuse names that no model has. Costs nothing either.

    Raises:
        ModelUnavailable: the text names all models there are.
    """
    for name in asked:
        if name not in names():
            raise ModelUnavailable(f"There is no model {name}. There are: {', '.join(names())}.")


def describe(weights_dir: Path | None, checkpoints: Mapping[str, Path]) -> list[ModelInfo]:
    """All models as `names` has them, with `ready` and `problem` for what is on this machine.

    Args:
        weights_dir: folder of weights; torch's own one if None.
        checkpoints: own weights by model name, which go before the published ones.
    """
    from worker.models import hub, zoo
    from worker.models.exemplar import Exemplar

    infos = [Exemplar.info]
    infos += [zoo.describe(name, weights_dir, checkpoints.get(name)) for name in TORCHVISION]
    infos += [hub.describe(name, weights_dir, checkpoints.get(name)) for name in OPEN_VOCABULARY]
    return infos


def load(
    name: str,
    device: "torch.device",
    weights_dir: Path | None,
    checkpoints: Mapping[str, Path],
    *,
    exact: bool = False,
    engine: str | None = None,
    cache: Path | None = None,
) -> Model[Any, Any]:
    """Build a model, ready to serve on `device`. Takes seconds.

    Args:
        name: as in `names`.
        device: where `forward` runs.
        weights_dir: folder of torchvision's weight files; torch's own one if None.
        checkpoints: own weights by model name, which go before torchvision's.
        exact: torchvision's models prepare images as torchvision does.
        engine: one of `worker.engine.NAMES`; None leaves plain torch and measures nothing.
        cache: folder where findings about engines are kept; None keeps nothing.

    Raises:
        ModelUnavailable: no model has this name, or its weights are missing or do not fit.
    """
    model = _build(name, device, weights_dir, checkpoints.get(name), exact)
    if engine is not None:
        from worker.engine import Tunable, Tuner

        if isinstance(model, Tunable):
            model.tune(Tuner(device, engine, cache))
    return model


def _build(
    name: str,
    device: "torch.device",
    weights_dir: Path | None,
    checkpoint: Path | None,
    exact: bool,
) -> Model[Any, Any]:
    if name == EXEMPLAR:
        from worker.models.exemplar import Exemplar

        try:
            return Exemplar(device)
        except (FileNotFoundError, ValueError) as error:  # its weights are missing or changed
            raise ModelUnavailable(str(error)) from None
    check_known(name)
    if name in OPEN_VOCABULARY:
        from worker.models import hub

        return hub.load(name, device, weights_dir, checkpoint)
    from worker.models import zoo

    return zoo.load(name, device, weights_dir, checkpoint, exact=exact)


def fetch(name: str, weights_dir: Path | None, revision: str | None = None) -> Path | None:
    """Download what `name` needs. None if it needs nothing.

    Args:
        revision: of an open-vocabulary model's repository: a branch, tag or commit.

    Raises:
        ModelUnavailable: no model has this name, or the download failed.
    """
    if name == EXEMPLAR:
        return None
    check_known(name)
    if name in OPEN_VOCABULARY:
        from worker.models import hub

        return hub.fetch(name, weights_dir, revision)
    if revision:
        raise ModelUnavailable(f"The weights of {name} have no revisions.")
    from worker.models import weights

    return weights.fetch(name, weights_dir)


def pick_device(name: str) -> "torch.device":
    """The device to run on: "auto" takes CUDA, else MPS, else the CPU.

    Args:
        name: "auto", or what torch calls a device, such as "cpu" or "cuda:1".

    Raises:
        ModelUnavailable: there is no such device on this machine.
    """
    import torch

    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception:  # torch raises RuntimeError, AssertionError and others, by kind of device
        raise ModelUnavailable(
            f'There is no device "{name}" on this machine. Use "auto", "cpu", "cuda" or "mps".'
        ) from None
    return device

"""Open-vocabulary models of the Hugging Face hub: where their weights lie, and how they get there.

Workers read folders, and nothing else: no network, no telemetry, no code that comes with weights,
no file but safetensors, JSON and word lists. Only `fetch` asks the hub, when somebody calls it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.contract import ModelInfo, PromptType, Task
from worker.models import ModelUnavailable
from worker.models.base import Model

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_RECORD = "mayfly-source.json"  # written by `fetch`: what the folder is a copy of
_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "vocab.txt", "merges.txt"]
# Read by the hub's libraries when they are imported. Kernels are code, compiled elsewhere.
_CUT_OFF = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "USE_HUB_KERNELS": "NO",
}


@dataclass(frozen=True)
class Kind:
    """What is known of a model without its weights.

    Attributes:
        repository: of the published weights.
        min_score, nms_iou: the defaults; docs/open-vocabulary.md says where they come from.
    """

    repository: str
    tasks: list[Task]
    prompts: list[PromptType]
    min_score: float
    nms_iou: float
    licence: str


KINDS = {
    "owlv2": Kind(
        "google/owlv2-base-patch16-ensemble",
        ["detect", "embed"],
        ["text", "box", "point", "embedding"],
        min_score=0.1,
        nms_iou=0.3,
        licence="Apache-2.0 (OWLv2 by Google)",
    ),
    "grounding-dino": Kind(
        "IDEA-Research/grounding-dino-tiny",
        ["detect"],
        ["text"],
        min_score=0.35,
        nms_iou=0.8,
        licence="Apache-2.0 (Grounding DINO by IDEA Research)",
    ),
}


@dataclass(frozen=True)
class Weights:
    """A folder with a model in it.

    Attributes:
        folder: as `save_pretrained` writes it.
        source: repository and commit that it is a copy of, if that is known.
    """

    folder: Path
    source: str | None

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def digest(self) -> bytes:
        """SHA-256 over the weights; the configuration and word lists are left out."""
        digests = []
        for path in self.files():
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()

    def version(self) -> str:
        """The source, else the weights' digest."""
        return self.source or "sha256:" + self.digest().hex()[:12]


def find(name: str, weights_dir: Path | None, checkpoint: Path | None) -> Weights:
    """Where the weights of `name` lie: a folder of one's own, what `fetch` brought, or the user's
    hub cache, in this order.

    Raises:
        ModelUnavailable: they are not here, or what reads them is not; the text says what to do.
    """
    if not find_spec("transformers"):
        raise ModelUnavailable(f"Model {name} needs the extra `hub`: pip install 'mayfly[hub]'.")
    fetched = _folder(name, weights_dir)
    folder = checkpoint or fetched
    if not (folder / "config.json").is_file() and not checkpoint:
        folder = _in_cache(KINDS[name].repository) or fetched
    weights = Weights(folder, _source(folder))
    if not (folder / "config.json").is_file():
        if checkpoint:
            raise ModelUnavailable(f"{checkpoint} is no folder with a model {name} in it.")
        raise ModelUnavailable(
            f"Model {name} has no weights here ({fetched}). Run `mayfly models fetch {name}` where "
            f"the network allows, copy the folder there, or set MAYFLY_CHECKPOINTS={name}=FOLDER "
            "to your own."
        )
    if not weights.files():
        raise ModelUnavailable(
            f"{folder} holds no .safetensors file. Other kinds of weights are not read, because "
            "loading them can run code: convert them with save_pretrained()."
        )
    return weights


def describe(name: str, weights_dir: Path | None, checkpoint: Path | None) -> ModelInfo:
    """What model `name` is and whether its weights are here. Builds no network."""
    try:
        return info(name, find(name, weights_dir, checkpoint).version())
    except ModelUnavailable as error:
        return info(name, "unknown", str(error))


def info(name: str, version: str, problem: str | None = None) -> ModelInfo:
    kind = KINDS[name]
    return ModelInfo(
        name=name,
        version=version,
        labels=[],
        tasks=kind.tasks,
        prompts=kind.prompts,
        outputs=["box"],
        min_score=kind.min_score,
        nms_iou=kind.nms_iou,
        licence=kind.licence,
        ready=problem is None,
        problem=problem,
    )


def load(
    name: str, device: "torch.device", weights_dir: Path | None, checkpoint: Path | None
) -> Model[Any, Any]:
    """Build a model with its weights on `device`.

    Raises:
        ModelUnavailable: the weights are missing or do not fit.
    """
    _cut_off()
    weights = find(name, weights_dir, checkpoint)
    model: Callable[..., Model[Any, Any]]
    if name == "owlv2":
        from worker.models.owlv2 import Owlv2 as model  # noqa: N813 - one name for either
    else:
        from worker.models.grounding_dino import GroundingDino as model  # noqa: N813
    try:
        loaded = model(weights.folder, info(name, weights.version()), device)
    except ModelUnavailable:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors raise many kinds here
        raise ModelUnavailable(
            f"{weights.folder} does not hold a model {name} that can be read "
            f"({type(error).__name__}: {_first_line(error)}). Fetch it again with "
            f"`mayfly models fetch {name}`."
        ) from None
    fields = {"model": name, "weights": loaded.info.version}
    log.info("weights loaded", extra={"fields": fields})
    return loaded


def complete(network_class: Any, folder: Path) -> Any:
    """The network of `folder` in evaluation mode, float32, on the CPU.

    Raises:
        ModelUnavailable: some of its weights are missing; transformers would make them up.
    """
    network, report = network_class.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        dtype="float32",
        output_loading_info=True,
    )
    missing = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if missing:
        raise ModelUnavailable(
            f"{folder} lacks {len(missing)} weights of the model (such as {missing[0]})."
        )
    return network.eval()


def fetch(name: str, weights_dir: Path | None, revision: str | None) -> Path:
    """Download the published weights, and note which commit they are of.

    Args:
        name: of the model.
        weights_dir: where its folder goes; torch's own folder of weights if None.
        revision: branch, tag or commit of the repository; "main" if None.

    Returns:
        The folder.

    Raises:
        ModelUnavailable: the download failed; the text says what else there is.
    """
    if not find_spec("huggingface_hub"):
        raise ModelUnavailable(f"Fetching {name} needs the extra `hub`: pip install 'mayfly[hub]'.")
    from huggingface_hub import HfApi, snapshot_download

    repository, folder = KINDS[name].repository, _folder(name, weights_dir)
    try:
        commit = HfApi().model_info(repository, revision=revision).sha
        snapshot_download(
            repository, revision=commit, local_dir=folder, allow_patterns=_FILES, max_workers=2
        )
    except Exception as error:  # the hub's client and its transport raise many kinds here
        raise ModelUnavailable(
            f"{repository} could not be fetched ({type(error).__name__}: {_first_line(error)}). On "
            f"a machine that can, run `mayfly models fetch {name}`; copy its folder to {folder}."
        ) from None
    source = {"repository": repository, "revision": revision or "main", "commit": commit}
    (folder / _RECORD).write_text(json.dumps(source) + "\n")
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _cut_off() -> None:
    """No network and no telemetry for the libraries; their logs are written as ours are."""
    os.environ.update(_CUT_OFF)
    if not find_spec("transformers"):
        return
    import huggingface_hub
    import transformers

    huggingface_hub.constants.HF_HUB_OFFLINE = True  # should it have been imported before
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for library in ("transformers", "huggingface_hub"):
        logger = logging.getLogger(library)
        logger.handlers.clear()
        logger.propagate = True


def _folder(name: str, weights_dir: Path | None) -> Path:
    if weights_dir is None:
        import torch

        weights_dir = Path(torch.hub.get_dir()) / "checkpoints"
    return weights_dir / name


def _in_cache(repository: str) -> Path | None:
    """The folder of the latest commit that the user's cache knows. Looks at files only."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(repository, "config.json")
    return Path(file).parent if isinstance(file, str) else None


def _source(folder: Path) -> str | None:
    """Repository and commit, from the record or from the place in the cache."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        return f"{record['repository']}@{str(record['commit'])[:12]}"
    except (OSError, ValueError, LookupError, TypeError):
        pass
    owner = folder.parent.parent.name.split("--")
    if folder.parent.name == "snapshots" and owner[0] == "models":
        return f"{'/'.join(owner[1:])}@{folder.name[:12]}"
    return None

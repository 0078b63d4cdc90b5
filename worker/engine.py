"""Which way of running a network's core is the fastest here, with outputs that are the core's own.

A core is a module from one batch to a tuple of tensors. At the start each way that this device has
is built, compared with plain torch and measured on noise; the fastest one stays.

| engine | device | what it is |
| --- | --- | --- |
| `eager` | any | torch as it is |
| `folded` | CPU | batch norms folded into their convolutions, channels last |
| `openvino` | CPU | OpenVINO's runtime, if the extra is installed |
| `bf16` | CUDA | folded, with convolutions and products in bfloat16 |
| `compiled` | any | folded, through `torch.compile`; starts in minutes, so only if it is named |

What was found is kept in a folder, so that the next start takes a second: names, figures and the
converted network; never anything of an image.
"""

import copy
import hashlib
import importlib.util
import logging
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from jobs import __version__

log = logging.getLogger(__name__)

Run = Callable[[Tensor], tuple[Tensor, ...]]

NAMES = ("auto", "eager", "folded", "openvino", "bf16", "compiled")
MAX_BATCHES = {"cpu": 4}  # of other devices 16
RUNS, ENOUGH_S = 7, 3.0  # a measurement ends with either
WORTH = 0.95  # a larger batch must take less time an image than this share of the smaller one's
# The largest difference from eager, as a share of each output's largest value.
TOLERANCE, TOLERANCE_BF16 = 1e-4, 5e-2
_RESIDUAL = [(f"conv{number}", f"bn{number}") for number in (1, 2, 3)]


class Found(msgspec.Struct, frozen=True):
    """What calibration found; this is what the cache keeps."""

    engine: str
    max_batch: int


@dataclass(frozen=True)
class Engine:
    """A core, ready to run. `run` takes a batch on the device and returns tensors on it."""

    name: str
    run: Run
    max_batch: int


@runtime_checkable
class Tunable(Protocol):
    """A model with a core that may run on any engine."""

    def tune(self, tuner: "Tuner") -> None:
        """Let `tuner` choose, and use what it chose."""


class _Refused(Exception):
    """An engine is not to be had, or not to be trusted; the text says why."""


@dataclass(frozen=True)
class Tuner:
    """Chooses engines.

    Args:
        device: where the cores lie.
        engine: one of `NAMES`; "auto" takes the fastest but "compiled".
        folder: where findings are kept; None keeps nothing.
    """

    device: torch.device
    engine: str = "auto"
    folder: Path | None = None

    def fastest(self, model: str, core: nn.Module, sample: Tensor, largest: int = 0) -> Engine:
        """Choose for one core, and warm it up.

        Args:
            model: its name, for the log.
            core: evaluating, on the device.
            sample: a batch of one as `core` gets it; its values are noise.
            largest: most images in a batch; 0 leaves it to the device.
        """
        largest = largest or MAX_BATCHES.get(self.device.type, 16)
        folder = self._folder_of(core, sample, largest)
        found = _recall(folder)
        start = time.monotonic()
        with torch.inference_mode():
            wanted = core(sample)
            names = [found.engine] if found else self._candidates()
            built = {name: _build(name, core, sample, wanted, folder, model) for name in names}
            times = {
                name: 0.0 if found else _seconds(run, sample) for name, run in built.items() if run
            }
            name = min(times, key=lambda name: times[name]) if times else "eager"
            run = built.get(name) or core
            most = found.max_batch if found else _batch(run, sample, largest)
        if not found:
            _remember(folder, Found(name, most))
        fields: dict[str, Any] = {"model": model, "engine": name, "max_batch": most}
        fields["start_s"] = round(time.monotonic() - start, 1)
        if not found:
            fields["ms"] = {name: round(1000 * seconds, 1) for name, seconds in times.items()}
        log.info("engine", extra={"fields": fields})
        return Engine(name, run, most)

    def _candidates(self) -> list[str]:
        if self.engine != "auto":
            return [self.engine]
        if self.device.type == "cpu":
            has_openvino = importlib.util.find_spec("openvino") is not None
            return ["eager", "folded", *(["openvino"] if has_openvino else [])]
        return ["eager", "bf16"] if self.device.type == "cuda" else ["eager"]

    def _folder_of(self, core: nn.Module, sample: Tensor, largest: int) -> Path | None:
        """One for each combination of weights, versions, machine and question."""
        if self.folder is None:
            return None
        digest = hashlib.sha256()
        for key, value in core.state_dict().items():
            digest.update(key.encode())
            digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        openvino = importlib.util.find_spec("openvino")
        about = (
            __version__,
            torch.__version__,
            str(openvino and openvino.origin),
            _cpu(),
            str(self.device),
            torch.get_num_threads(),
            self.engine,
            tuple(sample.shape),
            largest,
        )
        digest.update(repr(about).encode())
        folder = self.folder / "engines" / digest.hexdigest()[:32]
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            log.warning("no cache of engines", extra={"fields": {"reason": error.strerror}})
            return None
        return folder


def _build(
    name: str,
    core: nn.Module,
    sample: Tensor,
    wanted: tuple[Tensor, ...],
    folder: Path | None,
    model: str,
) -> Run | None:
    """The core on engine `name`, if its outputs are those of plain torch."""
    try:
        run = _ENGINES[name](core, sample, folder)
        off = _difference(run(sample), wanted)
        if not off <= (TOLERANCE_BF16 if name == "bf16" else TOLERANCE):
            raise _Refused(f"its outputs differ from torch's by {off:.2g} of the largest value")
    except Exception as error:  # whatever a compiler raises, the service starts without it
        reason = str(error) if isinstance(error, _Refused) else type(error).__name__
        fields = {"model": model, "engine": name, "reason": reason}
        log.warning("engine refused", extra={"fields": fields})
        return None
    return run


def _difference(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    return max(
        float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
        if one.shape == other.shape
        else float("inf")
        for one, other in zip(got, wanted, strict=True)
    )


def _seconds(run: Run, batch: Tensor) -> float:
    """Median time of a run."""
    times: list[float] = []
    run(batch)
    while len(times) < RUNS and sum(times) < ENOUGH_S:
        start = time.perf_counter()
        run(batch)
        if batch.is_cuda:
            torch.cuda.synchronize(batch.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _batch(run: Run, sample: Tensor, largest: int) -> int:
    """The largest batch, of those that double, that still gains on the one before."""
    size, each = 1, _seconds(run, sample) if largest > 1 else 0.0
    while 2 * size <= largest:
        next_each = _seconds(run, sample.expand(2 * size, -1, -1, -1).contiguous()) / (2 * size)
        if next_each > WORTH * each:
            break
        size, each = 2 * size, next_each
    return size


def _eager(core: nn.Module, sample: Tensor, folder: Path | None) -> Run:
    return core


def _folded(core: nn.Module, sample: Tensor, folder: Path | None) -> Run:
    folded = fold(core)

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = folded(batch.contiguous(memory_format=torch.channels_last))
        return outputs

    return run


def fold(core: nn.Module) -> nn.Module:
    """A copy with each batch norm that follows a convolution folded into it, channels last.

    Pairs are found in sequences and, by torchvision's names, in its residual networks; a norm may
    be frozen.
    """
    core = copy.deepcopy(core)
    for module in core.modules():
        children = dict(module.named_children())
        pairs = pairwise(children) if isinstance(module, nn.Sequential) else _RESIDUAL
        for conv, norm in pairs:
            one, other = children.get(conv), cast(Any, children.get(norm))
            if isinstance(one, nn.Conv2d) and hasattr(other, "running_var"):
                setattr(module, conv, fuse_conv_bn_eval(one, other))
                setattr(module, norm, nn.Identity())
    return core.to(memory_format=torch.channels_last)


def _bf16(core: nn.Module, sample: Tensor, folder: Path | None) -> Run:
    """Outputs are float32 again, so that suppression works in it."""
    folded = _folded(core, sample, folder)

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(batch.device.type, torch.bfloat16):
            outputs = folded(batch)
        return tuple(output.float() for output in outputs)

    return run


def _compiled(core: nn.Module, sample: Tensor, folder: Path | None) -> Run:
    """For batches of the sample's size; others would compile while a job waits, and run folded."""
    import torch._inductor.config as inductor

    if folder is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)  # torch's import has set its own
    folded = fold(core)
    compiled = torch.compile(folded, dynamic=False)
    with inductor.patch(freezing=True):
        compiled(sample)

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        if batch.shape != sample.shape:
            batch = batch.contiguous(memory_format=torch.channels_last)
        outputs: tuple[Tensor, ...] = (compiled if batch.shape == sample.shape else folded)(batch)
        return outputs

    return run


def _openvino(core: nn.Module, sample: Tensor, folder: Path | None) -> Run:
    """For batches and sides of any size, in float32 on as many threads as torch has."""
    openvino = _import_openvino()
    file = folder / "core.xml" if folder else None
    if file and file.is_file():
        model = openvino.Core().read_model(file)
    else:
        with warnings.catch_warnings():  # it still asks torch for a trace, as torch no longer likes
            warnings.simplefilter("ignore")
            model = openvino.convert_model(core, example_input=sample)
        if file:
            openvino.save_model(model, file, compress_to_fp16=False)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        outputs = request.infer(batch.contiguous().numpy(), share_inputs=True)
        return tuple(torch.from_numpy(outputs[at]) for at in range(len(outputs)))

    return run


def _import_openvino() -> Any:
    """OpenVINO without its telemetry, which it does without if it cannot be imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


_ENGINES: dict[str, Callable[[nn.Module, Tensor, Path | None], Run]] = {
    "eager": _eager,
    "folded": _folded,
    "openvino": _openvino,
    "bf16": _bf16,
    "compiled": _compiled,
}


def _recall(folder: Path | None) -> Found | None:
    if folder is None:
        return None
    try:
        found = msgspec.json.decode((folder / "found.json").read_bytes(), type=Found)
    except (OSError, msgspec.MsgspecError):
        return None
    return found if found.engine in _ENGINES else None


def _remember(folder: Path | None, found: Found) -> None:
    if folder is not None:
        with suppress(OSError):  # measured again next time
            (folder / "found.json").write_bytes(msgspec.json.encode(found))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("model name")), platform.machine())

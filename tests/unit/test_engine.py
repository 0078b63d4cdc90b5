"""The choice of an engine: only the fastest of those whose outputs are torch's own."""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model, resnet18
from torchvision.ops import FrozenBatchNorm2d

from worker import engine
from worker.engine import Engine, Tuner
from worker.models import efficientnet_lite
from worker.models.families import family_of

CPU = torch.device("cpu")
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra is not installed"
)


class Core(nn.Module):
    """A small network with what the folding is about: two convolutions with batch norms."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        norm: Any = nn.BatchNorm2d(8)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), norm, nn.ReLU(), nn.Conv2d(8, 4, 3)
        )
        with torch.no_grad():
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 2)
        self.eval()

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        small = self.body(batch)
        return small, small.mean((2, 3))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


SAMPLE = noise(1, 3, 32, 48)


def tuned(core: nn.Module | None = None, **options: Any) -> Engine:
    return Tuner(CPU, **options).fastest("some model", core or Core(), SAMPLE)


def refusals(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.message == "engine refused"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["eager", "folded", pytest.param("openvino", marks=needs_openvino)]
)
@torch.inference_mode()
def test_outputs_are_torchs_own_for_any_batch_and_size(name: str) -> None:
    found = tuned(engine=name)
    assert found.name == name
    core = Core()
    for batch in (SAMPLE, noise(3, 3, 32, 48), noise(2, 3, 64, 40)):
        for got, wanted in zip(found.run(batch), core(batch), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
@torch.inference_mode()
def test_a_residual_network_keeps_no_batch_norm(norm: Any) -> None:
    """torchvision's detectors have such backbones, most of them with frozen norms."""
    torch.manual_seed(0)
    core = resnet18(norm_layer=norm).eval()
    for module in core.modules():
        if isinstance(module, norm):
            module.running_var.uniform_(0.5, 2)
    folded = engine.fold(core)
    assert not [module for module in folded.modules() if isinstance(module, norm)]
    torch.testing.assert_close(folded(SAMPLE), core(SAMPLE), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="torch has no compiler here"
)
@torch.inference_mode()
def test_compiled_code_lies_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "elsewhere"))
    core, found = Core(), tuned(engine="compiled", folder=tmp_path / "here")
    assert found.name == "compiled"
    for batch in (SAMPLE, noise(3, 3, 64, 40)):  # as it was compiled for, and another one
        for got, wanted in zip(found.run(batch), core(batch), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert [*(tmp_path / "here" / "engines").rglob("*.so")]
    assert not (tmp_path / "elsewhere").exists()


@torch.inference_mode()
def test_half_precision_ends_in_float32() -> None:
    """As on a GPU, which this machine may not have: the same code on the CPU's bfloat16."""
    found = tuned(engine="bf16")
    assert found.name == "bf16"
    for got, wanted in zip(found.run(SAMPLE), Core()(SAMPLE), strict=True):
        assert got.dtype == torch.float32
        assert 0 < float((got - wanted).abs().max()) < 0.05


def test_every_name_in_the_settings_is_an_engine() -> None:
    assert set(engine.NAMES) == {"auto", *engine._ENGINES}


@needs_openvino
@torch.inference_mode()
def test_exemplars_backbone_on_openvino() -> None:
    core = efficientnet_lite.load()
    seed = torch.Generator().manual_seed(2)
    sample, other = (
        torch.randint(256, (1, 3, *size), generator=seed, dtype=torch.uint8)
        for size in ((128, 128), (96, 208))
    )
    found = Tuner(CPU, "openvino").fastest("exemplar", core, sample, 1)
    assert (found.name, found.max_batch) == ("openvino", 1)
    for batch in (sample, other):
        for got, wanted in zip(found.run(batch), core(batch), strict=True):
            assert float((got - wanted).abs().max()) < 1e-3


@torch.inference_mode()
def test_values_of_a_detectors_maps_decide_nothing() -> None:
    """Nobody uses more of them than their size."""
    torch.manual_seed(0)
    detector = get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None)
    _, _, *maps = family_of(detector.eval()).core(noise(1, 3, 320, 320))
    assert [tuple(each.shape) for each in maps] == [(1, 1, n, n) for n in (20, 10, 5, 3, 2, 1)]
    assert not any(each.any() for each in maps)


def test_the_fastest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for fastest in ("eager", "folded"):
        slow = {"eager": 1.0, "folded": 1.0, fastest: 0.5}
        monkeypatch.setattr(Tuner, "_candidates", lambda self: ["eager", "folded"])
        with monkeypatch.context() as patch:
            for name in ("eager", "folded"):
                build = engine._ENGINES[name]

                def marked(*given: Any, name: str = name, build: Any = build) -> Any:
                    run = build(*given)

                    def named(batch: Tensor) -> Any:
                        return run(batch)

                    named.engine = name  # type: ignore[attr-defined]
                    return named

                patch.setitem(engine._ENGINES, name, marked)
            patch.setattr(engine, "_seconds", lambda run, batch, slow=slow: slow[run.engine])
            assert tuned().name == fastest


def test_an_engine_with_other_outputs_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def off(core: nn.Module, *_: Any) -> engine.Run:
        return lambda batch: tuple(1.001 * output for output in core(batch))

    monkeypatch.setitem(engine._ENGINES, "folded", off)
    with caplog.at_level(logging.WARNING):
        assert tuned(engine="folded").name == "eager"
    assert [line["engine"] for line in refusals(caplog)] == ["folded"]
    assert "differ" in refusals(caplog)[0]["reason"]


def test_an_engine_that_fails_is_refused_without_its_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> engine.Run:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(engine._ENGINES, "folded", broken)
    with caplog.at_level(logging.WARNING):
        assert tuned(engine="folded").name == "eager"
    assert refusals(caplog)[0]["reason"] == "RuntimeError"


@pytest.mark.parametrize(
    ("seconds", "most"),
    [
        ({1: 1, 2: 2, 4: 4}, 1),
        ({1: 1, 2: 1.5, 4: 2.9}, 2),  # a quarter less an image, then next to nothing
        ({1: 1, 2: 1.5, 4: 2, 8: 2}, 4),  # the device's own limit
    ],
)
def test_batches_are_as_large_as_they_gain(
    seconds: dict[int, float], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_seconds", lambda run, batch: seconds[len(batch)])
    assert tuned(engine="eager").max_batch == most


def test_the_second_start_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tuned(folder=tmp_path)
    monkeypatch.setattr(engine, "_seconds", pytest.fail)
    again = tuned(folder=tmp_path)
    assert (again.name, again.max_batch) == (first.name, first.max_batch)
    kept = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert kept <= {"found.json", "core.xml", "core.bin"}
    monkeypatch.undo()
    tuned(Core(seed=1), folder=tmp_path)
    assert len(list(tmp_path.glob("engines/*"))) == 2  # other weights are another question
    monkeypatch.setattr(engine, "__version__", "next")  # whose core may do something else
    tuned(folder=tmp_path)
    assert len(list(tmp_path.glob("engines/*"))) == 3


@pytest.mark.parametrize("left", [b"", b"[]", b'{"engine":"no such","max_batch":1}'])
def test_a_damaged_cache_does_no_harm(left: bytes, tmp_path: Path) -> None:
    tuned(folder=tmp_path, engine="folded")
    (file,) = tmp_path.rglob("found.json")
    file.write_bytes(left)
    assert tuned(folder=tmp_path, engine="folded").name in ("eager", "folded")


def test_without_a_place_for_the_cache_it_works_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert tuned(folder=tmp_path / "file", engine="folded").name == "folded"


_WATCHED = """
import sys, socket
seen = []
watched = ("socket.connect", "socket.getaddrinfo", "socket.sendto")
sys.addaudithook(lambda event, given: seen.append(event) if event in watched else None)
import torch
from tests.unit.test_engine import SAMPLE, tuned
found = tuned(engine="openvino")
import time; time.sleep(1)
assert found.name == "openvino", found
print(seen, sys.modules.get("openvino_telemetry"))
try:
    socket.create_connection(("127.0.0.1", 9), 1)
except OSError:
    pass
print(len(seen) > 0)
"""


@needs_openvino
def test_openvino_tells_nobody(tmp_path: Path) -> None:
    """In a process of its own that notes each connection; the last line shows that it would."""
    environ = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED], env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["[] None", "True"], done.stderr
    assert list(tmp_path.rglob("*openvino*")) == []

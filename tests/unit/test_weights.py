"""Where models and weights come from: the registry, torchvision's files, checkpoints, fetching."""

import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from worker import models
from worker.models import ModelUnavailable, weights, zoo

CPU = torch.device("cpu")
SSDLITE = "ssdlite320_mobilenet_v3_large"
FASTER = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Only `fetch` may download."""
    if "fetch" not in request.node.name:
        monkeypatch.setattr(torch.hub, "download_url_to_file", pytest.fail)


def network(name: str = SSDLITE, classes: int = 91, **options: object) -> nn.Module:
    built: nn.Module = torchvision_models.get_model(
        name, weights=None, weights_backbone=None, num_classes=classes, **options
    )
    return built


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three classes and the background."""
    return saved(tmp_path_factory.mktemp("own") / "coins.pth", network(classes=4).state_dict())


# --- the registry ---


def test_names_are_torchvisions_with_ours_first() -> None:
    assert models.names()[0] == "exemplar"
    assert models.names()[1:] == [*zoo.names(), *models.OPEN_VOCABULARY]


def test_names_cost_no_torch() -> None:
    code = "import sys, worker.models as m; m.names(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_worker_refuses_an_unknown_model_before_it_imports_torch() -> None:
    code = (
        "import sys\n"
        "from jobs.settings import Settings, SettingsError\n"
        "from worker.main import load_models\n"
        "try:\n"
        "    load_models(Settings(models=('exemplar', 'yolo')))\n"
        "except SettingsError as error:\n"
        "    sys.exit('torch' in sys.modules or 'no model yolo' not in str(error))\n"
        "sys.exit('it was not refused')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_unknown_models_are_named_and_answered_with_the_known_ones(tmp_path: Path) -> None:
    for call in (
        lambda: models.load("yolo", CPU, tmp_path, {}),
        lambda: models.fetch("yolo", tmp_path),
    ):
        with pytest.raises(ModelUnavailable, match=r"no model yolo.*exemplar.*ssdlite"):
            call()


def test_load_takes_torchvisions_file_or_the_checkpoint_of_that_name(
    tmp_path: Path, own: Path
) -> None:
    saved(weights.file_of(SSDLITE, tmp_path), network().state_dict())
    published = models.load(SSDLITE, CPU, tmp_path, {"other": own})
    assert (published.info.version, len(published.info.labels)) == ("COCO_V1", 80)
    mine = models.load(SSDLITE, CPU, tmp_path, {SSDLITE: own})
    assert mine.info.labels == ["class 1", "class 2", "class 3"]


def test_devices_are_checked() -> None:
    assert models.pick_device("cpu") == CPU
    assert models.pick_device("auto").type in {"cpu", "cuda", "mps"}
    for name in ("cuda:99", "abacus"):
        with pytest.raises(ModelUnavailable, match=name):
            models.pick_device(name)


# --- describing ---


@pytest.mark.parametrize("name", zoo.names())
def test_descriptions_build_no_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "get_model", pytest.fail)
    info = zoo.describe(name, tmp_path)
    assert (info.name, info.version, info.tasks, info.prompts) == (name, "COCO_V1", ["detect"], [])
    assert info.outputs[0] == "box"
    assert ("mask" in info.outputs) == name.startswith("mask")
    assert ("keypoints" in info.outputs) == name.startswith("keypoint")
    assert info.labels[0] == "person"
    assert len(info.labels) == (1 if name.startswith("keypoint") else 80)
    assert "BSD-3-Clause" in info.licence
    assert not info.ready
    assert f"mayfly models fetch {name}" in (info.problem or "")
    weights.file_of(name, tmp_path).touch()
    assert zoo.describe(name, tmp_path).ready


def test_descriptions_equal_what_is_loaded(own: Path, tmp_path: Path) -> None:
    described = zoo.describe(SSDLITE, tmp_path, own)
    assert described == zoo.load(SSDLITE, CPU, tmp_path, own).info
    assert described.version == "sha256:" + weights.digest(own)[:12]
    assert described.ready


def test_all_models_are_described_in_order(own: Path, tmp_path: Path) -> None:
    infos = models.describe(tmp_path, {SSDLITE: own})
    assert [info.name for info in infos] == models.names()
    assert [info.name for info in infos if info.ready] == ["exemplar", SSDLITE]


def test_descriptions_say_what_is_wrong_with_a_checkpoint(tmp_path: Path) -> None:
    bad = saved(tmp_path / "bad.pth", [1, 2])
    info = zoo.describe(SSDLITE, None, bad)
    assert not info.ready
    assert "no state dict" in (info.problem or "")


# --- missing, wrong and hostile files ---


def refusal(name: str, folder: Path | None, checkpoint: Path | None = None, **more: Any) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        zoo.load(name, CPU, folder, checkpoint, **more)
    return str(caught.value)


def test_missing_weights_say_what_to_do(tmp_path: Path) -> None:
    text = refusal(SSDLITE, tmp_path)
    assert f"mayfly models fetch {SSDLITE}" in text
    assert f"MAYFLY_CHECKPOINTS={SSDLITE}=PATH" in text
    assert "not there" in refusal(SSDLITE, tmp_path, tmp_path / "none.pth")


def test_default_folder_is_torchs_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    assert weights.file_of(SSDLITE, None).parent == tmp_path / "checkpoints"


def test_checkpoints_of_another_model_are_refused(own: Path, tmp_path: Path) -> None:
    assert f"not a checkpoint of {FASTER}" in refusal(FASTER, None, own)
    saved(weights.file_of(FASTER, tmp_path), torch.load(own, weights_only=True))
    text = refusal(FASTER, tmp_path)
    assert "does not fit" in text
    assert "missing (such as " in text
    assert "unknown (such as " in text


def test_parameters_of_another_shape_are_named(own: Path, tmp_path: Path) -> None:
    state = torch.load(own, weights_only=True)
    state["backbone.features.0.0.0.weight"] = torch.zeros(1)
    text = refusal(SSDLITE, None, saved(tmp_path / "bent.pth", state))
    assert "1 of another shape (such as backbone.features.0.0.0.weight)" in text


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\3\4junk", b"\x80\x02."])
def test_junk_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "junk.pth"
    path.write_bytes(content)
    assert "cannot be read" in refusal(SSDLITE, None, path)


@pytest.mark.parametrize("content", [{}, [], {"model": 1}, {"a": 1}, torch.zeros(1)])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    assert "no state dict" in refusal(SSDLITE, None, saved(tmp_path / "odd.pth", content))


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_run_code_are_refused(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "ran"
    content = {"model": Evil(marker)}
    path = saved(tmp_path / "evil.pth", content, _use_new_zipfile_serialization=zipped)
    assert "refused" in refusal(SSDLITE, None, path)
    assert not marker.exists()


# --- own checkpoints ---


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_come_in_several_forms(
    own: Path, tmp_path: Path, wrapped: bool, zipped: bool
) -> None:
    state = torch.load(own, weights_only=True)
    content = {"model": state, "epoch": 3} if wrapped else OrderedDict(state)
    path = saved(tmp_path / "form.pth", content, _use_new_zipfile_serialization=zipped)
    loaded: Any = zoo.load(SSDLITE, CPU, None, path)._network
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_labels_come_from_the_argument_or_the_file_beside(own: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "coins.pth", torch.load(own, weights_only=True))
    assert zoo.load(SSDLITE, CPU, None, path).info.labels == ["class 1", "class 2", "class 3"]
    (tmp_path / "coins.labels.txt").write_text("cent\nfünfer\nzehner\n", encoding="utf-8")
    assert zoo.load(SSDLITE, CPU, None, path).info.labels == ["cent", "fünfer", "zehner"]
    given = zoo.load(SSDLITE, CPU, None, path, labels=["nothing", "a", "b", "c"])
    assert given._classes == ["nothing", "a", "b", "c"]
    text = refusal(SSDLITE, None, path, labels=["a"])
    assert "3 classes and a background, but there are 1 labels" in text


@pytest.mark.parametrize("name", [n for n in zoo.names() if "v2" not in n])
def test_the_number_of_classes_is_read_from_every_kind(name: str) -> None:
    with torch.device("meta"):
        options = {"num_keypoints": 5} if name.startswith("keypoint") else {}
        state: dict[str, Tensor] = network(name, 7, **options).state_dict()
        assert len(zoo._own_classes(name, Path("x.pth"), state, None)) == 7
        built = zoo._build(name, 7, state, published=False).state_dict()
    assert {key: value.shape for key, value in built.items()} == {
        key: value.shape for key, value in state.items()
    }


def test_a_backbone_that_was_frozen_in_training_stays_so(tmp_path: Path) -> None:
    state = {
        key: value
        for key, value in network(FASTER, 4).state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    loaded: Any = zoo.load(FASTER, CPU, None, saved(tmp_path / "frozen.pth", state))._network
    assert not any(isinstance(module, nn.BatchNorm2d) for module in loaded.modules())


# --- fetching ---


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local file in place of torchvision's, under a name that ends with its digest."""
    folder = tmp_path / "origin"
    folder.mkdir()
    raw = saved(folder / "raw.pth", {"weight": torch.ones(3)})
    path = raw.rename(folder / f"weights-{weights.digest(raw)[:8]}.pth")
    monkeypatch.setattr(weights.published(SSDLITE).value, "url", path.as_uri())
    return path


def test_fetch_places_the_whole_file(origin: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "weights"
    path = models.fetch(SSDLITE, folder)
    assert path == folder / origin.name
    assert path.read_bytes() == origin.read_bytes()
    assert list(folder.iterdir()) == [path]
    origin.unlink()
    assert models.fetch(SSDLITE, folder) == path  # what is there is not fetched again


def test_fetch_replaces_a_damaged_file(origin: Path, tmp_path: Path) -> None:
    path = tmp_path / origin.name
    path.write_bytes(origin.read_bytes()[:50])
    assert models.fetch(SSDLITE, tmp_path) == path
    assert path.read_bytes() == origin.read_bytes()


def test_fetch_refuses_what_torchvision_did_not_publish(origin: Path, tmp_path: Path) -> None:
    origin.write_bytes(origin.read_bytes() + b"more")
    with pytest.raises(ModelUnavailable, match="invalid hash"):
        models.fetch(SSDLITE, tmp_path)
    assert not list(tmp_path.glob("weights-*"))


def test_fetch_says_what_to_do_without_a_network(origin: Path, tmp_path: Path) -> None:
    origin.unlink()
    with pytest.raises(ModelUnavailable, match=f"Copy {origin.name} to"):
        models.fetch(SSDLITE, tmp_path)


def test_fetch_of_exemplar_needs_nothing(tmp_path: Path) -> None:
    assert models.fetch("exemplar", tmp_path) is None

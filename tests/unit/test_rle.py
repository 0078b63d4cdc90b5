"""Our run-length encoding against pycocotools, which defines it."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from worker.models.rle import encode

# pycocotools' own array type is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def theirs(mask: NDArray[np.bool_]) -> str:
    counts: bytes = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts.decode("ascii")


def masks() -> list[NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:300, 0:400]
    shapes = [(1, 1), (1, 7), (7, 1), (5, 5), (33, 64), (200, 31)]
    return [
        (x - 200) ** 2 + (y - 140) ** 2 < 90**2,
        np.zeros((2000, 1500), dtype=bool),
        np.ones((2000, 1500), dtype=bool),
        np.eye(70, dtype=bool),
        np.indices((9, 8)).sum(axis=0) % 2 == 1,
        *(rng.random(shape) < share for shape in shapes for share in (0, 0.03, 0.5, 0.97, 1)),
    ]


@pytest.mark.parametrize("number", range(len(masks())))
def test_encoding_is_what_pycocotools_writes_and_reads(number: int) -> None:
    mask = masks()[number]
    text = encode(mask)
    assert text == theirs(mask)
    read = coco.decode({"size": list(mask.shape), "counts": text.encode()})
    assert np.array_equal(read.astype(bool), mask)


def test_a_window_stands_for_the_whole_mask() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        height, width = (int(n) for n in rng.integers(1, 30, 2))
        top, bottom = sorted(int(n) for n in rng.integers(0, height + 1, 2))
        left, right = sorted(int(n) for n in rng.integers(0, width + 1, 2))
        mask = np.zeros((height, width), dtype=bool)
        window = rng.random((bottom - top, right - left)) < rng.choice([0.2, 0.9, 1])
        mask[top:bottom, left:right] = window
        assert encode(window, top=top, left=left, size=mask.shape) == theirs(mask)

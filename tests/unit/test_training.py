"""How the head is trained and judged: scenes by seed, losses that train, figures that are right."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from jobs.contract import Box
from scripts.exemplar import pictures
from scripts.exemplar.drawings import HEIGHT, WIDTH
from scripts.exemplar.pictures import Gallery, Query
from scripts.exemplar.quality import calibration_error, count_error, f1, score_query
from scripts.exemplar.scenes import Painter, Scene
from scripts.exemplar.sources import Bank, is_held_out, photographs
from scripts.train_exemplar import planes, pose
from worker.models import efficientnet_lite, extent
from worker.models.head import WEIGHTS, Maps, Prompt, Thing, load, look

GROUPS = (
    "fluent-3d",
    "fluent-flat",
    "clip-art",
    "lucide",
    "font-awesome",
    "fashion",
    "dejavu/DejaVuSans-Bold",
    "held-out/twemoji",
    "held-out/tabler",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of random drawings in place of the fetched sources."""
    folder: Path = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    places: list[tuple[int, int, int]] = []
    groups: dict[str, list[int]] = {}
    concepts: list[str] = []
    content = b""
    for group in GROUPS:
        groups[group] = list(range(len(places), len(places) + 12))
        for n in range(12):
            cut = rng.integers(0, 256, (60, 50, 4), np.uint8)
            cut[..., 3] = 255
            places.append((len(content), 60, 50))
            concepts.append(f"{group} {n}")
            content += cut.tobytes()
    (folder / "bank.bin").write_bytes(content)
    index = {"places": places, "groups": groups, "concepts": concepts}
    (folder / "bank.json").write_text(json.dumps(index))
    return folder


def test_a_scene_is_drawn_from_its_seed_alone(data: Path) -> None:
    painters = [Painter(Bank(data), photographs(data, held_out=False)) for _ in range(2)]
    for seed in range(60):  # so that every kind of scene is among them
        one, two = (painter.scene(seed) for painter in painters)
        assert one.pixels.shape == (HEIGHT, WIDTH, 3)
        assert (one.pixels == two.pixels).all()
        assert (one.boxes == two.boxes).all()
        assert len(one.boxes) == len(one.classes) == len(one.turns) > 0
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert (one.boxes >= 0).all()
        assert (one.boxes <= (WIDTH, HEIGHT, WIDTH, HEIGHT)).all()
        assert _most_covered(one.boxes) < 0.45
    assert (painters[0].scene(1).pixels != painters[0].scene(2).pixels).any()


def _most_covered(boxes: np.ndarray) -> float:
    """The largest share of an object's box that another one covers."""
    corners = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    sides = (corners - np.maximum(boxes[:, None, :2], boxes[None, :, :2])).clip(min=0)
    covered = sides.prod(2) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    np.fill_diagonal(covered, 0)
    return float(covered.max())


def test_a_tenth_of_the_concepts_is_held_out() -> None:
    out = sum(is_held_out(f"concept {n}") for n in range(5000))
    assert 400 < out < 600


def test_training_runs_and_goes_on_where_it_stopped(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.train_exemplar", "train"]
    command += ["--data", str(data), "--out", str(tmp_path), "--processes", "1", "--minutes"]
    subprocess.run([*command, "0.02"], check=True)
    first = torch.load(tmp_path / "state.pt", weights_only=True)
    subprocess.run([*command, "0.1"], check=True)
    second = torch.load(tmp_path / "state.pt", weights_only=True)
    assert 0 < first["step"] < second["step"]
    assert len(second["history"]) > len(first["history"]) > 0
    assert np.isfinite(second["history"]).all()
    assert (tmp_path / "losses.png").is_file()
    trained, identity = load(tmp_path / "head.pt")
    assert len(identity) == 8
    names = [name for name, _ in trained.named_parameters()]
    for verdict in ("comparators.0.decide.2.weight", "comparators.1.decide.2.weight"):
        assert (first["head"][verdict] != second["head"][verdict]).any()
        learned = second["optimiser"]["state"][names.index(verdict)]
        assert learned["exp_avg"].any()  # not by weight decay alone: it had prompts
    assert sum(p.numel() for p in trained.parameters()) < 1_000_000


def test_weights_may_go_a_share_of_the_way_that_was_learned(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.train_exemplar", "train", "--processes", "1"]
    command += ["--data", str(data), "--out", str(tmp_path), "--minutes", "0.02", "--way", "0.25"]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "name the weights to begin with" in refused.stderr
    subprocess.run([*command, "--start", str(WEIGHTS)], check=True)
    begun = load(WEIGHTS)[0].state_dict()
    learned = torch.load(tmp_path / "state.pt", weights_only=True)["mean"]
    for name, kept in torch.load(tmp_path / "head.pt", weights_only=True).items():
        assert torch.allclose(kept, 0.75 * begun[name] + 0.25 * learned[name], atol=1e-6)
    assert any((learned[name] != begun[name]).any() for name in begun)


def test_a_prompt_that_is_shown_turned_is_to_find_what_lies_so() -> None:
    angles, places = (0.0, 90.0, 101.0, 180.0, 90.0), (40, 130, 220, 310, 400)
    canvas, boxes = Image.new("RGB", (WIDTH, HEIGHT), "white"), []
    for angle, x in zip(angles, places, strict=True):
        sign = Image.new("RGBA", (64, 64))
        ImageDraw.Draw(sign).polygon((6, 4, 60, 32, 6, 60, 6, 40), "black")
        drawn = sign.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        canvas.paste(drawn, (x, 100), drawn)
        boxes.append((x, 100, x + drawn.width, 100 + drawn.height))
    scene = Scene(
        np.array(canvas),
        np.array(boxes, np.float32),
        np.array((0, 0, 0, 0, 1)),
        np.array(angles, np.float32),
    )
    embedder, backbone = load()[0].embedder, efficientnet_lite.load()

    def embed(pixels: Tensor) -> Maps:
        with torch.no_grad():
            maps: Maps = embedder(*backbone(pixels))
        return maps

    whole = embed(planes(scene))
    seen = look(whole, torch.from_numpy(scene.boxes)).coarse.flatten(1)
    found = set()
    for seed in range(24):
        posed = pose(scene, 0, embed, whole, torch.Generator().manual_seed(seed))
        wanted = [n for n in range(4) if scene.boxes[n].tolist() in posed.same.tolist()]
        left = [n for n in range(4) if scene.boxes[n].tolist() in posed.open_.tolist()]
        found.add((*wanted,))
        assert sorted(wanted + left) == [0, 1, 2, 3]
        assert posed.other.tolist() == scene.boxes[4:].tolist()
        like = F.cosine_similarity(posed.thing.coarse.flatten(1), seen[:4])
        assert int(like.argmax()) in wanted
    assert found == {(0,), (1, 2), (3,)}


def test_two_comparators_vote() -> None:
    head, _ = load()
    seed = torch.Generator().manual_seed(0)
    coarse = torch.randn(5, 81, 48, generator=seed)
    seen = Thing(coarse, torch.randn(5, 196, 16, generator=seed), torch.zeros(5))
    shown = Prompt.of(seen[:1])
    said = [comparator(shown, seen) for comparator in head.comparators]
    assert (said[0][0] != said[1][0]).all()
    for mean, *each in zip(head.compare(shown, seen), *said, strict=True):
        assert torch.allclose(mean, torch.stack(each).mean(0), atol=1e-5)


def test_the_extent_of_a_point_is_learned(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "extent.pt"
    command = [sys.executable, "-m", "scripts.train_extent", "--data", str(data)]
    subprocess.run([*command, "--out", str(out), "--minutes", "0.05"], check=True)
    trained, shipped = extent.load(out), extent.load()
    maps = Maps(torch.rand(1, 48, 32, 32), torch.rand(1, 16, 64, 64))
    points = torch.tensor([[128.0, 128.0], [3.0, 250.0]])
    for network in (trained, shipped):
        fits, boxes = network(maps, points)
        assert fits.shape == (2,)
        assert (boxes[:, :2] < points).all()
        assert (boxes[:, 2:] > points).all()
    assert (trained(maps, points)[1] != shipped(maps, points)[1]).any()


def test_no_piece_of_a_photograph_shows_what_is_asked_for(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cat has eyes: finding them is no mistake, so where an eye is asked for is no cat."""
    gallery, drawn = Gallery(Bank(data), "dev"), []
    monkeypatch.setattr(pictures, "_still", lambda piece: gallery._pieces.index(piece))
    monkeypatch.setattr(pictures, "_compose", lambda *args, **_: drawn.append(args[3]))
    for seed in range(400):
        gallery._photographs("row", np.random.default_rng(seed))
    eye, cat, nose = 7, 8, 9
    assert any(asked == cat and {eye, nose} & {*others} for asked, *others in drawn)
    assert any(asked == eye and nose in others for asked, *others in drawn)
    assert not any(asked in (eye, nose) and cat in others for asked, *others in drawn)


def test_the_benchmark_counts_as_coco_does() -> None:
    truth: list[Box] = [(0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)]
    query = Query("row", np.zeros((60, 60, 3), np.uint8), truth, [0])
    found: list[tuple[float, Box]] = [
        (0.9, (0, 0, 10, 10)),  # right
        (0.8, (0, 1, 10, 11)),  # the same once more: false
        (0.7, (20, 0, 30, 8)),  # right at IoU .5, not above .8
        (0.2, (40, 0, 50, 10)),  # right, below the threshold
    ]
    scored = score_query(query, found, truth, 0.5)
    assert (scored.right, scored.false, scored.missed) == (2, 1, 1)
    assert f1([scored]) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert count_error([scored]) == 0
    assert scored.average_precision == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)
    assert scored.mean_precision < scored.average_precision
    assert calibration_error([scored]) == pytest.approx((0.1 + 0.8 + 0.3 + 0.8) / 4)

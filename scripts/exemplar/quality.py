"""`mayfly bench-quality`: how well `exemplar` finds, on pictures with known truth.

One threshold for all rows. Beside it, on the same queries, its search without anything learned, and
matching of pixels: normalised cross-correlation at five scales.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch.nn import functional as F  # noqa: N812 - the customary name

from jobs.contract import (
    Box,
    BoxPrompt,
    EmbeddingPrompt,
    PointPrompt,
    Prompt,
    PromptType,
    Request,
)
from scripts.exemplar.pictures import Gallery, Query
from scripts.exemplar.sources import Bank
from worker.models import efficientnet_lite, head
from worker.models.base import Embedding, Finds, Pixels
from worker.models.exemplar import Exemplar
from worker.models.head import Maps, double, look, unit
from worker.models.proposals import Template, propose
from worker.models.regions import Whitening, suppress
from worker.models.search import Field
from worker.models.views import View, Wanted, plan, tiles

_ASKED = Request()  # all as it is by default
IOUS = np.arange(0.5, 0.96, 0.05)
_LONE = 5  # times as many pictures: false finds of lone objects are rare, and come in bunches
Found = list[tuple[float, Box]]  # score and box
Finder = Callable[[Query, list[Box], list[Box]], Found]  # of positive and negative prompts


@dataclass(frozen=True)
class Scored:
    """One query's outcome. The prompted objects count neither way."""

    query: Query
    right: int
    false: int
    missed: int
    average_precision: float  # at IoU .5
    mean_precision: float  # over IoU .5 to .95
    pairs: list[tuple[float, bool]]  # score and truth of each find, for the calibration
    found: Found


class Learned:
    """`exemplar` as the service runs it, called in this process.

    Attributes:
        asked: a request but for its prompts and its least score.
        shown_by: boxes, points in their middles, or the embedding that the boxes give, which then
            are painted over, as on a picture that does not show them.
        seconds: that each query took.
    """

    def __init__(
        self,
        device: str = "cpu",
        weights: Path = head.WEIGHTS,
        asked: Request = _ASKED,
        shown_by: PromptType = "box",
    ) -> None:
        self.model = Exemplar(torch.device(device), weights)
        self.asked = asked
        self.shown_by = shown_by
        self.seconds: list[float] = []

    def __call__(self, query: Query, shown: list[Box], against: list[Box]) -> Found:
        prompts: list[Prompt] = [BoxPrompt(box=box) for box in shown]
        if self.shown_by == "point":
            prompts = [
                PointPrompt(point=((x0 + x1) / 2, (y0 + y1) / 2)) for x0, y0, x1, y1 in shown
            ]
        pixels = query.pixels
        if self.shown_by == "embedding":
            told = self._ask(pixels, Request(task="embed", prompts=tuple(prompts)))
            assert isinstance(told, Embedding)  # noqa: S101 - it was asked to embed
            prompts = [EmbeddingPrompt(data=told.text)]
            pixels = _without(pixels, shown)
        prompts += [BoxPrompt(box=box, negative=True) for box in against]
        begin = time.perf_counter()
        finds = self._ask(
            pixels, msgspec.structs.replace(self.asked, prompts=tuple(prompts), min_score=0.05)
        )
        self.seconds.append(time.perf_counter() - begin)
        assert isinstance(finds, Finds)  # noqa: S101 - it was not asked to embed
        return [(a.score, a.box) for a in finds.annotations]

    def _ask(self, pixels: Pixels, request: Request) -> Finds | Embedding:
        item = self.model.prepare({"image": pixels}, request)
        (raw,) = self.model.forward([item])
        return self.model.finish(raw, item)


def _without(pixels: Pixels, boxes: Iterable[Box]) -> Pixels:
    """A copy whose boxes have the median colour of their edges."""
    painted = pixels.copy()
    for box in boxes:
        x0, y0, x1, y1 = (round(side) for side in box)
        frame = [
            painted[y0, x0:x1],
            painted[y1 - 1, x0:x1],
            painted[y0:y1, x0],
            painted[y0:y1, x1 - 1],
        ]
        painted[y0:y1, x0:x1] = np.median(np.concatenate(frame), axis=0)
    return painted


class Untrained:
    """What `exemplar` does before its head speaks, on the backbone's own features.

    Its proposals, whitened templates with a penalty for object-like surroundings, are the finds.
    Such scores mean something else in every picture, so they are held against the picture's best:
    .5 is at .45 of the mean of the three best, or at .13.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._backbone = efficientnet_lite.load().to(self._device)

    def __call__(self, query: Query, shown: list[Box], _: list[Box]) -> Found:
        x0, y0, x1, y1 = shown[0]
        box = torch.tensor(shown[:1], dtype=torch.float32, device=self._device)
        root = math.sqrt((x1 - x0) * (y1 - y0))
        height, width = query.pixels.shape[:2]
        image = torch.tensor(query.pixels, device=self._device).permute(2, 0, 1)
        pyramid = plan(width, height, [Wanted((root,), here=True, negative=False)])
        with torch.inference_mode():
            fields = [
                Field(level, view, self._maps(view))
                for level, scale in pyramid.scales.items()
                for view in tiles(image, scale)
            ]
            whitening = Whitening.fit([field.maps.coarse for field in fields])
            own = [field for field in fields if field.level == pyramid.own[0]]
            best = max(own, key=lambda field: field.view.holds(box[0]))
            template = Template(look(best.maps, best.view.inward(box)), whitening)
            sides = (box[0, 2:] - box[0, :2]) / root
            boxes, scores = [], []
            for field in fields:
                field.whiten(whitening)
                sizes = sides * torch.tensor(pyramid.searched[0][field.level])[:, None]
                where, score = propose(template, field.features, sizes, 100)
                boxes.append(field.view.outward(where))
                scores.append(score)
        place, value = torch.cat(boxes), torch.cat(scores)
        cut = max(0.13, 0.45 * float(value.topk(3).values.mean()))
        kept = suppress(place, value, 0.4)
        return [
            (score / cut / 2, (a, b, c, d))
            for (a, b, c, d), score in zip(place[kept].tolist(), value[kept].tolist(), strict=True)
            if score > cut / 5
        ]

    def _maps(self, view: View) -> Maps:
        one, two, four = self._backbone(view.pixels)
        coarse = torch.cat([unit(two), double(unit(four))], 1)
        return Maps(F.normalize(coarse, dim=1), one)


def pixel_matching(query: Query, shown: list[Box], _: list[Box]) -> Found:
    """Normalised cross-correlation (Lewis, 1995) of grey values, .5 at a correlation of .6."""
    from skimage.feature import match_template, peak_local_max

    grey = np.asarray(Image.fromarray(query.pixels).convert("L")).astype(np.float32)
    x0, y0, x1, y1 = (round(side) for side in shown[0])
    found: Found = []
    for scale in (0.7, 0.84, 1.0, 1.19, 1.4):
        size = (max(4, round((x1 - x0) * scale)), max(4, round((y1 - y0) * scale)))
        piece = np.asarray(Image.fromarray(grey[y0:y1, x0:x1]).resize(size))
        like = match_template(grey, piece)  # type: ignore[no-untyped-call]
        for y, x in peak_local_max(like, min_distance=5, threshold_abs=0.3):  # type: ignore[no-untyped-call]
            score = float(like[y, x])
            found.append((score / 1.2, (x, y, x + size[0], y + size[1])))
    return _suppress(found)


def measure(
    finder: Finder,
    queries: Iterable[Query],
    *,
    shown: int = 1,
    aside: int = 0,
    negative: bool = False,
    sloppy: float = 0.0,
    threshold: float = 0.5,
) -> list[Scored]:
    """Ask each query with its first `shown` prompts, moved by `sloppy` of their sides.

    These, and `aside` further ones, count neither as found nor as missed.
    """
    scored = []
    for number, query in enumerate(queries):
        rng = np.random.default_rng(number)
        prompted = [query.truth[n] for n in query.prompts[: shown + aside]]
        given = [_moved(box, sloppy, rng, query.pixels.shape) for box in prompted[:shown]]
        against = [query.look_alike] if negative and query.look_alike else []
        found = [
            (score, box)
            for score, box in finder(query, given, against)
            if not any(iou(box, other) > 0.5 for other in [*prompted, *given])
        ]
        truth = [box for box in query.truth if box not in prompted]
        scored.append(score_query(query, found, truth, threshold))
    return scored


def extents(pointed: Learned, queries: Iterable[Query]) -> list[float]:
    """IoU of the first find, which a point in the prompt's middle is taken for, with the prompt."""
    shown = [(query, query.truth[query.prompts[0]]) for query in queries]
    return [iou(pointed(query, [box], [])[0][1], box) for query, box in shown]


def score_query(query: Query, found: Found, truth: list[Box], threshold: float) -> Scored:
    """Match finds with truth, best score first, each box once."""
    found = sorted(found, reverse=True)
    precisions = [_average_precision(found, truth, at) for at in IOUS]
    open_, pairs, right, false = list(truth), [], 0, 0
    for score, box in found:
        best = max(open_, key=lambda other: iou(box, other), default=None)
        hit = best is not None and iou(box, best) >= 0.5
        if hit and best is not None:
            open_.remove(best)
        pairs.append((score, hit))
        if score >= threshold:
            right, false = right + hit, false + (not hit)
    missed = len(truth) - right
    return Scored(
        query, right, false, missed, precisions[0], float(np.mean(precisions)), pairs, found
    )


def _average_precision(found: Found, truth: list[Box], at: float) -> float:
    """Area under the precision-recall curve, precision made monotone (as COCO does)."""
    if not truth:
        return 1.0
    open_, hits = list(truth), []
    for _, box in found:
        best = max(open_, key=lambda other: iou(box, other), default=None)
        hit = best is not None and iou(box, best) >= at
        if hit and best is not None:
            open_.remove(best)
        hits.append(hit)
    if not hits:
        return 0.0
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((precision * hits).sum() / len(truth))


def f1(scored: Sequence[Scored]) -> float:
    """2 right / (2 right + false + missed), over all finds of all queries."""
    right = sum(s.right for s in scored)
    wrong = sum(s.false + s.missed for s in scored)
    return 2 * right / max(1, 2 * right + wrong)


def count_error(scored: Sequence[Scored]) -> float:
    """Mean of |number found - number there|."""
    return mean(abs(s.false - s.missed) for s in scored)


def calibration_error(scored: Sequence[Scored]) -> float:
    """Expected calibration error in ten bins of the score (Naeini et al., 2015)."""
    pairs = np.array([pair for s in scored for pair in s.pairs], float).reshape(-1, 2)
    if not len(pairs):
        return 0.0
    bins = np.minimum(9, (pairs[:, 0] * 10).astype(int))
    error = 0.0
    for n in range(10):
        mine: NDArray[np.float64] = pairs[bins == n]
        if len(mine):
            error += len(mine) * abs(mine[:, 0].mean() - mine[:, 1].mean())
    return error / len(pairs)


def by_row(scored: Iterable[Scored]) -> dict[str, list[Scored]]:
    rows: dict[str, list[Scored]] = {}
    for one in scored:
        rows.setdefault(one.query.row, []).append(one)
    return rows


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (both - width * height)


def _suppress(found: Found, at: float = 0.4) -> Found:
    kept: Found = []
    for score, box in sorted(found, reverse=True):
        if not any(iou(box, other) > at for _, other in kept):
            kept.append((score, box))
    return kept


def _moved(box: Box, sloppy: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Box:
    w, h = box[2] - box[0], box[3] - box[1]
    x0, y0, x1, y1 = np.array(box) + rng.uniform(-sloppy, sloppy, 4) * (w, h, w, h)
    return max(0.0, x0), max(0.0, y0), min(float(shape[1]), x1), min(float(shape[0]), y1)


def run(options: argparse.Namespace) -> int:
    """Measure, print the table, and write ``quality.json`` and ``quality.png`` if asked to."""
    gallery = Gallery(Bank(options.data), options.split)
    weights = options.head or head.WEIGHTS
    learned = Learned(options.device, weights=weights)
    queries = list(gallery.rows(options.pictures))
    _say(f"{len(queries)} queries to {learned.model.info.name} {learned.model.info.version} …")
    ours = by_row(measure(learned, queries))
    seconds = sorted(learned.seconds)
    _say("the same without training, and by pixels …")
    untrained = by_row(measure(Untrained(options.device), queries))
    pixels = by_row(measure(pixel_matching, queries))
    report: dict[str, Any] = {"split": options.split, "threshold": 0.5, "rows": {}}
    print(f"{'':24}mAP50 50-95  F1    count  F1 untrained, by pixels")
    for row, scored in ours.items():
        figures = {
            "queries": len(scored),
            "map50": mean(s.average_precision for s in scored),
            "map50_95": mean(s.mean_precision for s in scored),
            "f1": f1(scored),
            "count_error": count_error(scored),
            "untrained_f1": f1(untrained[row]),
            "pixels_f1": f1(pixels[row]),
        }
        report["rows"][row] = figures
        print(
            f"{row:24}{figures['map50']:.3f} {figures['map50_95']:.3f}  {figures['f1']:.3f} "
            f"{figures['count_error']:5.2f}  "
            f"{figures['untrained_f1']:.3f} {figures['pixels_f1']:.3f}"
        )
    everything = [s for scored in ours.values() for s in scored]
    _say("lone objects, sloppy boxes, more examples, look-alikes, other wishes …")
    drawn = [query for query in queries if not query.real]
    alike = [query for query in drawn if query.look_alike]
    lone = measure(learned, gallery.lone(_LONE * options.pictures))
    pointed = Learned(options.device, weights=weights, shown_by="point")
    embedded = Learned(options.device, weights, shown_by="embedding")
    meant = extents(pointed, queries)
    more = {
        "count error, all rows": mean(count_error(scored) for scored in ours.values()),
        "calibration error": calibration_error(everything),
        "false finds, lone object": mean(s.false for s in lone),
        "F1, drawn rows": f1([s for s in everything if not s.query.real]),
        "F1, boxes off by 10 %": f1(measure(learned, drawn, sloppy=0.1)),
        "F1, three examples": f1(measure(learned, drawn, shown=3)),
        "F1, one example, the same other objects": f1(measure(learned, drawn, aside=2)),
        "F1, a point for an example": f1(measure(pointed, drawn)),
        "F1, an embedding for an example": f1(measure(embedded, drawn)),
        "extent of a point: IoU of .5 or more": mean(each >= 0.5 for each in meant),
        "F1, with a look-alike there": f1([s for s in everything if s.query.look_alike]),
        "F1, the look-alike marked": f1(measure(learned, alike, negative=True)),
        "seconds a query, median": seconds[len(seconds) // 2],
    }
    ways = {
        "strict": (Request(match="strict"), drawn),
        "kind": (Request(match="kind"), drawn),
        "nothing turned": (Request(turned=False), queries),
    }
    for way, (asked, some) in ways.items():
        rows = by_row(measure(Learned(options.device, weights, asked), some))
        more |= {f"F1, {way}: {row}": f1(of_row) for row, of_row in rows.items()}
    report["more"] = more
    for name, value in more.items():
        print(f"{name:44}{value:.3f}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "quality.json").write_text(json.dumps(report, indent=1))
        _sheet(everything, options.out / "quality.png")
    return 0


def _sheet(scored: list[Scored], path: Path) -> None:
    """The six best and the eighteen worst pictures: prompt red, finds green, false orange, missed
    blue."""
    by_f1 = sorted(scored, key=lambda s: f1([s]))
    chosen = [*by_f1[-6:], *by_f1[:18]]
    sheet = Image.new("RGB", (6 * 390, 4 * 300), "white")
    for n, one in enumerate(chosen):
        picture = Image.fromarray(one.query.pixels)
        pen = ImageDraw.Draw(picture)
        shown = one.query.truth[one.query.prompts[0]]
        finds = [box for score, box in one.found if score >= 0.5]
        for box in one.query.truth:
            if not any(iou(box, other) >= 0.5 for other in [shown, *finds]):
                pen.rectangle(box, outline="#1668b5", width=4)
        for box in finds:
            right = any(iou(box, other) >= 0.5 for other in one.query.truth)
            pen.rectangle(box, outline="#2a9d3a" if right else "#e08a00", width=4)
        pen.rectangle(shown, outline="#d02020", width=4)
        picture.thumbnail((380, 290))
        sheet.paste(picture, (5 + n % 6 * 390, 5 + n // 6 * 300))
    sheet.save(path, optimize=True)


def _say(text: str) -> None:
    print(f"bench-quality: {text}", file=sys.stderr, flush=True)

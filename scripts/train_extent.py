"""Train what guesses the extent of a point, on the scenes that the head of `exemplar` learns from.

    python -m scripts.train_extent --data DIR --out FILE --minutes 15

`--data` is what `python -m scripts.train_exemplar fetch` made. The head's embedder stays as it is.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from scripts.exemplar.scenes import Painter, Scene
from scripts.exemplar.sources import Bank, photographs
from scripts.train_exemplar import follow, level, planes, set_rate
from worker.models import efficientnet_lite, extent, head
from worker.models.extent import FIRST, RATIO, Extent
from worker.models.overlap import box_iou
from worker.models.regions import STRIDE

_POINTS = 10  # of a scene
_SMALLEST, _LARGEST = 26.0, 120.0  # root of the area of what a view is to get right, in its pixels
_SHRUNK = 0.3  # of a scene, at most: small things are blurred where they are enlarged


def main() -> None:
    parser = argparse.ArgumentParser(prog="train_extent", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sources")
    parser.add_argument("--out", type=Path, required=True, help="file for the weights")
    parser.add_argument("--head", type=Path, default=head.WEIGHTS, help="whose embedder to use")
    parser.add_argument("--start", type=Path, help="weights to begin with")
    parser.add_argument("--minutes", type=float, default=15.0, help="CPU time")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not (options.data / "bank.json").is_file():
        parser.error(f"{options.data} holds no bank: run `scripts.train_exemplar fetch` first")
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    painter = Painter(Bank(options.data), photographs(options.data, held_out=False))
    backbone, embedder = efficientnet_lite.load(), head.load(options.head)[0].embedder
    network, mean = Extent(), Extent()
    if options.start:
        network.load_state_dict(extent.load(options.start).state_dict())
    mean.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=1e-4)
    step, begin, recent = 0, time.process_time(), []
    while (share := (time.process_time() - begin) / 60 / options.minutes) < 1:
        set_rate(optimiser, options.rate, share, step)
        number = options.seed * 10_000_000 + step
        scene, generator = painter.scene(number), torch.Generator().manual_seed(number)
        step += 1
        if len(scene.boxes) == 0:
            continue
        lost = _step(network, backbone, embedder, scene, generator)
        optimiser.zero_grad()
        lost[:2].sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimiser.step()
        follow(mean, network, step)
        recent.append(lost.tolist())
        if step % 50 == 0:
            fit, box, taken = torch.tensor(recent[-50:]).mean(0).tolist()
            losses = f"losses {fit:.3f} {box:.3f}  IoU {taken:.3f}"
            print(f"step {step}  {share:4.0%}  {losses}", flush=True)
    torch.save(mean.state_dict(), options.out)


def _step(
    network: Extent,
    backbone: nn.Module,
    embedder: nn.Module,
    scene: Scene,
    generator: torch.Generator,
) -> Tensor:
    """Losses of fit and box, and the IoU of the boxes that would be taken: (3,)."""
    shrunk = math.exp(math.log(_SHRUNK) * float(torch.rand((), generator=generator)))
    boxes = torch.from_numpy(scene.boxes)
    boxes = boxes[torch.randperm(len(boxes), generator=generator)[:_POINTS]]
    shift = torch.rand(len(boxes), 2, 2, generator=generator).sum(2) / 4 - 0.25  # mostly near 0
    points = (boxes[:, :2] + boxes[:, 2:]) / 2 + shift * (boxes[:, 2:] - boxes[:, :2])
    whole = planes(scene)
    small = level(whole, shrunk)
    logits, overlaps, losses = [], [], []
    for scale in (FIRST, FIRST / RATIO, FIRST / RATIO**2):
        with torch.no_grad():
            maps = embedder(*backbone(level(small, scale)))
        zoom = torch.tensor([STRIDE * maps.coarse.shape[n] / whole.shape[n] for n in (3, 2)])
        wanted = boxes * zoom.repeat(2)
        fit, drawn = network(maps, points * zoom)
        overlap = box_iou(drawn, wanted).diagonal()
        sizes = (wanted[:, 2:] - wanted[:, :2]).prod(1).sqrt()
        logits.append(fit)
        overlaps.append(overlap)
        losses.append((1 - overlap)[(sizes >= _SMALLEST) & (sizes <= _LARGEST)])
    fits, reached = torch.stack(logits), torch.stack(overlaps).detach()
    taken = reached.gather(0, fits.argmax(0, keepdim=True))
    box = torch.cat(losses)
    return torch.stack(
        [
            F.binary_cross_entropy_with_logits(fits, reached),
            box.mean() if len(box) else 0 * fits.sum(),
            taken.mean(),
        ]
    )


if __name__ == "__main__":
    main()

"""Train the head of `exemplar`.

    python -m scripts.train_exemplar fetch  --data DIR      # sources, by npm and apt-get
    python -m scripts.train_exemplar train  --data DIR --out DIR --minutes 40 --processes 2

Scenes are drawn while training, each from its own seed, so nothing is seen twice and nothing is
stored. `train` goes on where an earlier run with the same --out stopped. It writes ``head.pt``, the
weights, ``state.pt`` to go on from, and a plot of the losses.
"""

import argparse
import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F  # noqa: N812 - the customary name

from scripts.exemplar.scenes import Painter, Scene
from scripts.exemplar.sources import Bank, fetch, photographs
from worker.models import efficientnet_lite
from worker.models.head import COMPARATORS, Embedder, Head, Maps, Prompt, Thing, load, look, move
from worker.models.overlap import box_iou
from worker.models.proposals import Template, propose
from worker.models.regions import FeatureMap, Whitening
from worker.models.views import COARSER, OWN, RATIO, cut, turn

LEVELS = (1.0, 1 / RATIO)  # of the picture; the smaller one for what is larger than the prompt
_LARGER = 1.26  # times the prompt: from there on the smaller level
_PROPOSED = (56, 24)  # candidates on each level
_HARDEST = 36  # of them are learned from: those that the head of the moment takes for finds
_ALONE = 0.25  # of the prompts are of things that have no like
_POSED = (0.15, 0.8)  # of the prompts are shown turned; and where things lie at any angle
_BENT = 35.0  # degrees from the pose up to which a thing is to be known by it
_AGAIN = 44  # candidates that are moved and judged a second time
_NOWHERE = torch.tensor([[-9.0, -9.0, -8.0, -8.0]])
_MOMENTUM = 0.997  # of the running mean of the weights, which is what is kept


def main() -> None:
    parser = argparse.ArgumentParser(prog="train_exemplar", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("fetch", "train"):
        command = commands.add_parser(name)
        command.add_argument("--data", type=Path, required=True, help="folder of the sources")
    command.add_argument("--out", type=Path, required=True, help="folder for weights and plot")
    command.add_argument("--minutes", type=float, default=40.0, help="CPU time of each process")
    command.add_argument("--processes", type=int, default=2)
    command.add_argument("--rate", type=float, default=1.6e-3, help="highest learning rate")
    command.add_argument("--start", type=Path, help="weights to begin with")
    command.add_argument("--way", type=float, default=1.0, help="share that head.pt goes from them")
    command.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.command == "fetch":
        fetch(options.data)
        Bank.build(options.data)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.data / "bank.json").is_file():
        parser.error(f"{options.data} holds no bank: run `fetch` first")
    if options.way != 1 and not options.start:
        parser.error("--way is counted from --start: name the weights to begin with")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_train, (options, port), options.processes)  # type: ignore[no-untyped-call]


def _train(rank: int, options: argparse.Namespace, port: int) -> None:
    """One of the processes: the same steps as the others, on scenes of its own."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=options.processes)
    torch.manual_seed(options.seed)
    painter = Painter(Bank(options.data), photographs(options.data, held_out=False))
    backbone = efficientnet_lite.load()
    head, mean = Head(), Head()
    learning = list(head.parameters())
    optimiser = torch.optim.AdamW(learning, lr=options.rate, weight_decay=1e-4)
    state_file, step, spent = options.out / "state.pt", 0, 0.0
    history: list[list[float]] = []
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        head.load_state_dict(state["head"])
        mean.load_state_dict(state["mean"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent, history = state["step"], state["spent"], state["history"]
    else:
        if options.start:
            head.load_state_dict(load(options.start)[0].state_dict())
        else:
            _standardise(head.embedder, painter, backbone)
        mean.load_state_dict(head.state_dict())
    begin = time.process_time() - spent * 60
    saved = time.monotonic()
    while True:
        spent = (time.process_time() - begin) / 60
        clock = torch.tensor(spent)
        dist.broadcast(clock, 0)  # all stop after the same step
        if clock >= options.minutes:
            break
        share = clock.item() / options.minutes
        set_rate(optimiser, options.rate, share, step)
        number = options.seed * 10_000_000 + step * options.processes + rank
        generator = torch.Generator().manual_seed(number)
        losses = _step(head, backbone, painter.scene(number), generator, number)
        optimiser.zero_grad()
        if losses is not None:
            losses.sum().backward()  # type: ignore[no-untyped-call]
        _average(learning, options.processes)
        nn.utils.clip_grad_norm_(learning, 2.0)
        optimiser.step()
        step += 1
        follow(mean, head, step)
        if rank == 0:
            if losses is not None:
                history.append([spent, *losses.tolist()])
            if step % 50 == 0:
                recent = torch.tensor(history[-50:]).mean(0).tolist()
                parts = " ".join(f"{value:.3f}" for value in recent[1:])
                print(
                    f"step {step}  {spent:5.1f}/{options.minutes:.0f} min  losses {parts}",
                    flush=True,
                )
            if time.monotonic() - saved > 120:
                saved = time.monotonic()
                _save(options, head, mean, optimiser, step, spent, history)
    if rank == 0:
        _save(options, head, mean, optimiser, step, spent, history)
        _plot(history, options.out / "losses.png")
    dist.destroy_process_group()


def set_rate(optimiser: torch.optim.Optimizer, highest: float, share: float, step: int) -> None:
    """A warm-up, then a cosine over the `share` of the time that has passed."""
    warm = min(1.0, (step + 1) / 60)
    for group in optimiser.param_groups:
        group["lr"] = highest * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)


def follow(mean: nn.Module, network: nn.Module, step: int) -> None:
    """Keep the running mean of a network's weights."""
    momentum = min(_MOMENTUM, step / (step + 20))
    with torch.no_grad():
        for kept, fresh in zip(mean.parameters(), network.parameters(), strict=True):
            kept.lerp_(fresh, 1 - momentum)


def _step(
    head: Head, backbone: nn.Module, scene: Scene, generator: torch.Generator, first: int
) -> Tensor | None:
    """Losses (4,) of one scene: class and box in the first round, and in the second.

    The comparators take the scene's prompts in turn, beginning with the `first`, so that each
    learns from prompts of its own.
    """
    boxes, classes = torch.from_numpy(scene.boxes), torch.from_numpy(scene.classes)
    if len(boxes) < 3:
        return None

    def embed(pixels: Tensor) -> Maps:
        with torch.no_grad():
            stages = backbone(pixels)
        maps: Maps = head.embedder(*stages)
        return maps

    maps = [embed(level(planes(scene), scale)) for scale in LEVELS]
    losses = []
    for n, prompt in enumerate(_prompts(boxes, classes, generator), first):
        shown = pose(scene, prompt, embed, maps[0], generator)
        losses.append(_compare(head.comparators[n % COMPARATORS], maps, shown, generator))
    return torch.stack(losses).mean(0)


def _prompts(boxes: Tensor, classes: Tensor, generator: torch.Generator) -> list[int]:
    """Two objects to prompt with: mostly of classes that have several, and of fitting size."""
    sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    fitting = [n for n in range(len(boxes)) if 38 <= sizes[n] <= 100]
    several = [n for n in fitting if (classes == classes[n]).sum() > 1]
    single = [n for n in fitting if (classes == classes[n]).sum() == 1]
    chosen = []
    for _ in range(2):
        alone = torch.rand((), generator=generator) < _ALONE
        pool = (single or several) if alone else (several or single)
        if pool:
            chosen.append(pool[int(torch.randint(len(pool), (), generator=generator))])
    return chosen or [int(sizes.argmax())]


@dataclass(frozen=True)
class Posed:
    """A prompt, and what it is to find.

    Attributes:
        thing: of it.
        size: (2,) width and height that it has, or would have in its pose.
        box: (1, 4) of it, moved a little.
        same: (N, 4) boxes of its class that lie about as it does in its pose.
        other: boxes of other classes.
        open_: boxes of its class that lie otherwise: nothing is asked of them.
    """

    thing: Thing
    size: Tensor
    box: Tensor
    same: Tensor
    other: Tensor
    open_: Tensor


def pose(
    scene: Scene,
    prompt: int,
    embed: Callable[[Tensor], Maps],
    maps: Maps,
    generator: torch.Generator,
) -> Posed:
    """A prompt of a scene, as it stands or as a search turns it: by eighths, mostly as another of
    its class lies."""
    boxes, classes = torch.from_numpy(scene.boxes), torch.from_numpy(scene.classes)
    sloppy = 0.09 if torch.rand((), generator=generator) < 0.35 else 0.03
    box = _jitter(boxes[prompt : prompt + 1], sloppy, generator)
    alike = classes == classes[prompt]
    apart = torch.from_numpy(scene.turns) - scene.turns[prompt]
    whirled = bool(apart.abs().max() > 2 * _BENT)
    eighths = 0
    if torch.rand((), generator=generator) < _POSED[whirled]:
        eighths = int(torch.randint(8, (), generator=generator))
        others = apart[alike & (torch.arange(len(alike)) != prompt)]
        if whirled and len(others):
            one = others[int(torch.randint(len(others), (), generator=generator))]
            eighths = round(float(one) / 45) % 8
    thing, size = look(maps, box), box[0, 2:] - box[0, :2]
    if eighths:
        x0, y0, x1, y1 = box[0].tolist()
        view, place = turn(*cut(planes(scene)[0], (x0, y0, x1, y1), 1.0), eighths)
        thing, size = look(embed(view.pixels), place), place[0, 2:] - place[0, :2]
    off = (apart - 45 * eighths + 180) % 360 - 180
    known = alike & (off.abs() <= _BENT) if eighths or whirled else alike
    return Posed(thing, size, box, boxes[known], boxes[~alike], boxes[alike & ~known])


def _compare(
    comparator: nn.Module, maps: list[Maps], shown: Posed, generator: torch.Generator
) -> Tensor:
    remembered = Prompt.of(shown.thing)
    proposed = _proposals(maps, shown.thing, shown.size)
    with torch.no_grad():
        _, verdicts, _ = _judge(comparator, maps, remembered, proposed, shown)
    hardest = verdicts.topk(min(_HARDEST, len(proposed))).indices
    tried = torch.cat(
        [
            shown.box,
            _around(shown.same, 6, generator),
            _around(shown.other, 2, generator),
            _anywhere(shown.size, 4, generator),
            proposed[hardest],
        ]
    )
    first, logits, deltas = _judge(comparator, maps, remembered, tried, shown)
    worst = logits.detach().topk(min(_AGAIN, len(tried))).indices
    moved = move(tried[worst], deltas[worst].detach())
    second, *_ = _judge(comparator, maps, remembered, moved, shown)
    return torch.cat([first, second])


def _judge(
    comparator: nn.Module,
    maps: list[Maps],
    remembered: Prompt,
    tried: Tensor,
    shown: Posed,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (2,), logits and deltas of boxes, each seen on the level that fits its size."""
    tried = tried.detach()
    limit = _LARGER * shown.size.prod().sqrt()
    large = (tried[:, 2:] - tried[:, :2]).prod(1).sqrt() > limit
    order = torch.cat([(~large).nonzero()[:, 0], large.nonzero()[:, 0]])
    parts = [look(maps[0], tried[~large]), look(maps[1], tried[large] * LEVELS[1])]
    logits, deltas = comparator(remembered, Thing.join(parts)[order.argsort()])
    same = torch.cat([shown.same, _NOWHERE])
    overlap, nearest = box_iou(tried, same).max(1)
    asked = box_iou(tried, torch.cat([shown.open_, _NOWHERE])).amax(1) <= overlap.clamp(min=0.2)
    wanted = ((overlap - 0.35) / 0.5).clamp(0, 1)
    error = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    weight = asked * ((logits.detach().sigmoid() - wanted).abs() + 0.05)
    close = overlap > 0.3
    target = _deltas(tried[close], same[nearest[close]])
    box = F.smooth_l1_loss(deltas[close], target, beta=0.1) if close.any() else 0 * logits.sum()
    return torch.stack([(weight * error).sum() / (weight.sum() + 1e-3), 4 * box]), logits, deltas


def _proposals(maps: list[Maps], thing: Thing, size: Tensor) -> Tensor:
    with torch.no_grad():
        whitening = Whitening.fit([one.coarse for one in maps])
        template = Template(thing, whitening)
        found = []
        for one, scale, shares, most in zip(maps, LEVELS, (OWN, COARSER), _PROPOSED, strict=True):
            view = FeatureMap(one.coarse, whitening)
            sizes = size * scale * torch.tensor(shares)[:, None]
            found.append(propose(template, view, sizes, most)[0] / scale)
    return torch.cat(found)


def _deltas(boxes: Tensor, target: Tensor) -> Tensor:
    """What `move` would have to be given, within what it can do."""
    sides, wanted = boxes[:, 2:] - boxes[:, :2], target[:, 2:] - target[:, :2]
    shift = (target[:, 2:] + target[:, :2] - boxes[:, 2:] - boxes[:, :2]) / 2 / sides
    return torch.cat([shift, (wanted / sides).log()], 1).clamp(-0.5, 0.5)


def _jitter(boxes: Tensor, sigma: float | Tensor, generator: torch.Generator) -> Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes + torch.randn(boxes.shape, generator=generator) * sigma * sides
    return torch.cat([moved[:, :2], torch.maximum(moved[:, 2:], moved[:, :2] + 6)], 1)


def _around(boxes: Tensor, number: int, generator: torch.Generator) -> Tensor:
    sigma = torch.tensor([0.06, 0.15, 0.3]).repeat(number)[:number].repeat(len(boxes))[:, None]
    return _jitter(boxes.repeat_interleave(number, 0), sigma, generator)


def _anywhere(size: Tensor, number: int, generator: torch.Generator) -> Tensor:
    middle = torch.rand(number, 2, generator=generator) * torch.tensor([512.0, 384.0])
    half = size / 2 * (torch.rand(number, 1, generator=generator) * 0.8 + 0.6)
    return torch.cat([middle - half, middle + half], 1)


def planes(scene: Scene) -> Tensor:
    """A scene's pixels as the backbone takes them: (1, 3, H, W) uint8."""
    return torch.from_numpy(scene.pixels).permute(2, 0, 1)[None]


def level(pixels: Tensor, scale: float) -> Tensor:
    """(1, 3, H, W) uint8 pixels at some scale, the sides rounded to multiples of 16."""
    if scale == 1:
        return pixels
    size = [round(side * scale / 16) * 16 for side in pixels.shape[2:]]
    return F.interpolate(pixels, size, mode="bilinear", antialias=True)


def _standardise(embedder: Embedder, painter: Painter, backbone: nn.Module) -> None:
    """Measure the channels' means and spreads once, over scenes that training does not use."""
    maps: list[list[Tensor]] = [[], [], []]
    with torch.no_grad():
        for seed in range(60):
            for kept, x in zip(maps, backbone(planes(painter.scene(seed))), strict=True):
                kept.append(x.flatten(2)[0, :, ::7])
        for n, kept in enumerate(maps):
            cells = torch.cat(kept, 1)
            embedder.get_buffer(f"mean{n}").copy_(cells.mean(1)[None, :, None, None])
            embedder.get_buffer(f"spread{n}").copy_(cells.std(1)[None, :, None, None] + 1e-3)


def _average(learning: list[nn.Parameter], processes: int) -> None:
    """The mean gradient of all processes."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in learning]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    at = 0
    for parameter, grad in zip(learning, grads, strict=True):
        parameter.grad = flat[at : at + grad.numel()].view_as(grad) / processes
        at += grad.numel()


def _save(
    options: argparse.Namespace,
    head: Head,
    mean: Head,
    optimiser: torch.optim.Optimizer,
    step: int,
    spent: float,
    history: list[list[float]],
) -> None:
    state: dict[str, Any] = {
        "head": head.state_dict(),
        "mean": mean.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "spent": spent,
        "history": history,
    }
    learned = mean.state_dict()
    if options.way != 1:  # as model soups are mixed (Wortsman et al., 2022)
        start = load(options.start)[0].state_dict()
        learned = {name: start[name].lerp(kept, options.way) for name, kept in learned.items()}
    for name, content in (("state.pt", state), ("head.pt", learned)):
        part = options.out / (name + ".part")
        torch.save(content, part)
        part.replace(options.out / name)


def _plot(history: list[list[float]], path: Path) -> None:
    """Running means of the four losses over minutes, drawn with Pillow."""
    from PIL import Image, ImageDraw

    losses = torch.tensor(history)
    picture = Image.new("RGB", (720, 400), "white")
    pen = ImageDraw.Draw(picture)
    names = ("class", "box", "class, second round", "box, second round")
    colours = ("#1668b5", "#c4501b", "#7fb2e5", "#eba27d")
    window = max(25, len(losses) // 40)
    smooth = losses.T if len(losses) < window else F.avg_pool1d(losses.T[None], window, 5)[0]
    top = float(smooth[1:].max())
    for n, (name, colour) in enumerate(zip(names, colours, strict=True)):
        x = 40 + 660 * smooth[0] / smooth[0].max()
        y = 370 - 330 * smooth[n + 1] / top
        pen.line([(float(a), float(b)) for a, b in zip(x, y, strict=True)], colour, 2)
        pen.text((480, 20 + 16 * n), name, colour)
    pen.text(
        (40, 376), f"0 to {float(smooth[0].max()):.0f} minutes; losses from 0 to {top:.2f}", "black"
    )
    picture.save(path)


if __name__ == "__main__":
    main()

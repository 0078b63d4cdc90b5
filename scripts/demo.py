"""`mayfly demo`: the main job end to end on a real picture, through the HTTP interface."""

import io
import json
import sys
import time
from pathlib import Path

import msgspec

from jobs import formats
from jobs.contract import Annotated, Box
from scripts.client import Client, ServiceError
from scripts.draw import draw
from scripts.local import local_service

COIN: Box = (184.0, 103.0, 228.0, 146.0)  # round one coin, as a person would draw it
_TRUTH = Path(__file__).parent.parent / "tests" / "data" / "coins.json"
_ENOUGH = 22


async def run(out: Path) -> int:
    """Find all coins from a box round one; returns 1 when too few were found."""
    import skimage.data
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    pixels = skimage.data.coins()  # type: ignore[no-untyped-call]
    Image.fromarray(pixels).save(file, "PNG")
    image = file.getvalue()
    prompt = {"type": "box", "box": COIN, "label": "coin"}

    _say("starting the service: a private Valkey, the front door, one worker …")
    begin = time.monotonic()
    async with local_service() as url, Client(url) as client:
        _say(f"ready at {url} after {time.monotonic() - begin:.1f} s")
        begin = time.monotonic()
        job = await client.submit(image, {"prompts": [prompt]})
        submitted = time.monotonic()
        result = msgspec.json.decode(await client.fetch(job), type=Annotated)
        fetched = time.monotonic()
        try:
            await client.fetch(job)
            again = 200
        except ServiceError as error:
            again = error.status
    _say("service stopped")

    with (out / "coins.json").open("wb") as coco:
        formats.write_coco(coco, [("coins.png", result)])
    (out / "picture.png").write_bytes(image)
    draw(image, result, out / "coins.png", [COIN])

    truth = [tuple(box) for box in json.loads(_TRUTH.read_text())]
    found = sum(any(iou(box, a.box) >= 0.5 for a in result.annotations) for box in truth)
    timing = result.timing
    print(f"""
  one box in         {COIN}, label "coin"
  annotations out    {len(result.annotations)}; {found} of {len(truth)} coins at IoU >= 0.5
  submit             {1000 * (submitted - begin):7.0f} ms
  queued             {timing.queued_ms:7.0f} ms
  decode, prepare    {timing.decode_ms:7.0f} ms
  infer              {timing.infer_ms:7.0f} ms  (batch of {timing.batch_size})
  result here after  {1000 * (fetched - submitted):7.0f} ms
  fetched again      HTTP {again}: {"nothing is left" if again == 410 else "should be 410"}
  written            {out / "coins.json"} (COCO), {out / "coins.png"}""")
    return 0 if found >= _ENOUGH and again == 410 else 1


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (sum(areas) - width * height)


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)

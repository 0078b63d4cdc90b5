"""The promise, checked from outside on real processes: no byte of an image, a prompt, a result, a
file name or a token in Redis, logs, temporary files or open files, while a job waits and after."""

import asyncio
import base64
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import redis
from PIL import Image

from scripts.canary import Place, find, in_files, in_redis, open_files
from tests.e2e.conftest import Service

LABEL = "canary-label-7f3a91"
FILE_NAME = "canary-file-name-c0ffee.png"


def _noise() -> tuple[bytes, bytes]:
    """A PNG of noise, and a row of its pixels."""
    pixels = np.random.default_rng(7).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), pixels[40].tobytes()


def _everywhere(service: Service) -> list[Place]:
    places = [*in_redis(service.valkey()), *in_files(service.tmp), *in_files(service.log.parent)]
    for process in service.children():
        places.extend(open_files(process.pid))
    return places


async def test_no_trace_while_a_job_waits_nor_after(running: Service) -> None:
    image, row = _noise()
    secrets = {
        "image bytes": image[5000:5032],
        "pixels": row[60:92],
        "label": LABEL.encode(),
        "file name": FILE_NAME.encode(),
    }
    prompt = {"type": "box", "box": [20, 20, 60, 60], "label": LABEL}
    form = aiohttp.FormData()
    form.add_field("request", json.dumps({"prompts": [prompt]}))
    form.add_field("image", io.BytesIO(image), filename=FILE_NAME, content_type="image/png")
    worker = running.child("worker")
    worker.send_signal(signal.SIGSTOP)
    try:
        async with aiohttp.ClientSession(running.url) as session:
            async with session.post("/v1/jobs", data=form) as response:
                assert response.status == 202
                job: Any = await response.json()
            secrets["token"] = job["token"].encode()
            queued = _everywhere(running)
            assert any(f"{job['id']}:image" in str(place) for place in queued)
            assert find(queued, secrets) == []

            worker.send_signal(signal.SIGCONT)
            headers = {"Authorization": f"Bearer {job['token']}"}
            async with session.get(job["links"]["self"] + "?wait=20", headers=headers) as response:
                assert (await response.json())["status"] == "done"
            done = _everywhere(running)
            assert any(f"{job['id']}:result" in str(place) for place in done)
            assert find(done, secrets) == []

            async with session.get(job["links"]["result"], headers=headers) as response:
                assert LABEL in await response.text()
    finally:
        worker.send_signal(signal.SIGCONT)
    await asyncio.sleep(0.2)  # log lines are written after the answer
    after = _everywhere(running)
    assert find(after, secrets) == []
    assert not any("arq:" in str(place) and job["id"] in str(place) for place in after)
    assert job["id"] in running.log.read_text(), "ids may be logged, and are"


@pytest.mark.leaks_on_purpose
def test_the_search_finds_a_planted_leak(valkey: "redis.Redis", tmp_path: Path) -> None:
    """The same search, with a leak of each kind planted."""
    image, _ = _noise()
    secret = {"image bytes": image[5000:5032]}
    valkey.set("arq:result:1", b"args=(" + repr(image[4990:5040]).encode() + b")")
    valkey.hset("some:hash", "field", base64.b64encode(image[4999:5100]).decode())
    (tmp_path / "upload.tmp").write_bytes(image)
    (tmp_path / "log").write_text(f"payload {image[4000:6000].hex()}")
    with (tmp_path / "held").open("w+b") as held:
        held.write(image)
        held.flush()
        (tmp_path / "held").unlink()
        found = find([*in_redis(valkey), *in_files(tmp_path), *open_files(os.getpid())], secret)
    places = " ".join(found)
    for place in ("arq:result:1", "some:hash", "upload.tmp", "file log", "held (deleted)"):
        assert place in places, place

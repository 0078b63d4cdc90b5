"""Clients that take for ever to send are let go; the others do not notice them."""

import asyncio
import dataclasses
import statistics
import time

import aiohttp

from jobs.sealing import PrivateKey
from jobs.settings import Settings
from jobs.store import Store
from tests.calls import submit
from tests.conftest import picture_bytes, running_front_door

HEADERS = (
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 5000\r\n\r\n"
)


async def _stalled(session: aiohttp.ClientSession, sent: bytes) -> float:
    """Send a part, then nothing; how long until the server closes the connection."""
    url = session._base_url
    assert url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    begin = time.monotonic()
    writer.write(sent)
    await reader.read()
    seconds = time.monotonic() - begin
    writer.close()
    return seconds


async def test_stalled_headers_and_bodies_are_closed(
    store: Store, settings: Settings, key: PrivateKey
) -> None:
    """Nothing sent, half a header, half a body: the time-out, and for a body the lingering."""
    hasty = dataclasses.replace(settings, upload_timeout_s=0.5)
    async with running_front_door(hasty, key) as session:
        for sent in (b"", HEADERS[:40], HEADERS + b"\x89PNG"):
            async with asyncio.timeout(10):
                assert 0.4 < await _stalled(session, sent) < 5


async def test_a_dripping_header_is_closed_too(
    store: Store, settings: Settings, key: PrivateKey
) -> None:
    """A byte now and then does not renew the time-out."""
    hasty = dataclasses.replace(settings, upload_timeout_s=0.5)
    async with running_front_door(hasty, key) as session:
        url = session._base_url
        assert url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        begin = time.monotonic()
        for byte in HEADERS[:-4]:
            if reader.at_eof():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.1)
        assert reader.at_eof()
        assert time.monotonic() - begin < 5
        writer.close()


async def test_five_hundred_stalled_uploads_disturb_nobody(
    store: Store, settings: Settings, key: PrivateKey
) -> None:
    """The others' jobs are accepted as ever. (Their latency is measured, not asserted.)"""
    async with running_front_door(settings, key) as session:
        url = session._base_url
        assert url

        async def latency() -> float:
            begin = time.monotonic()
            assert (await submit(session, picture_bytes())).status == 202
            return time.monotonic() - begin

        idle = statistics.median([await latency() for _ in range(30)])
        stalled = [await asyncio.open_connection(url.host, url.port) for _ in range(500)]
        for number, (_, writer) in enumerate(stalled):
            writer.write(HEADERS[:40] if number % 2 else HEADERS + b"\x89PNG")
        await asyncio.sleep(0.2)
        busy = statistics.median([await latency() for _ in range(30)])
        print(f"submit p50: {idle * 1000:.1f} ms idle, {busy * 1000:.1f} ms beside 500 stalled")  # noqa: T201
        for _, writer in stalled:
            writer.close()

"""The client against the real service: what it promises when the way there is bad."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis
from aiohttp import web

from jobs.contract import Annotation
from jobs.sealing import PrivateKey
from jobs.settings import Settings
from jobs.store import Store
from scripts.certificates import self_signed
from scripts.client import Client, Item, Outcome, Progress, ServiceError, SyncClient, box
from tests.calls import BOX, BOX_REQUEST
from tests.conftest import picture_bytes, running_front_door, running_worker
from tests.fakes import Echo, Shown
from tests.faults.network import Network, proxy
from worker.models.base import Finds

SLOW = {"prompts": [box(8, 8, 24, 24, "slow")]}


def url_of(session: aiohttp.ClientSession) -> str:
    return str(session._base_url)


@pytest.fixture
def url(service: aiohttp.ClientSession) -> str:
    return url_of(service)


async def test_a_result_is_typed_and_nothing_stays(
    url: str, picture: bytes, valkey: "redis.Redis"
) -> None:
    async with Client(url) as client:
        result = await client.annotate(picture, BOX_REQUEST)
    assert result.annotations == [Annotation("coin", 1.0, tuple(BOX))]  # type: ignore[arg-type]
    left: Any = valkey.keys("mayfly:*")
    assert not {key.rsplit(b":", 1)[1] for key in left} & {b"image", b"result", b"lease"}


async def test_a_failed_job_is_an_error_and_leaves_nothing(
    url: str, picture: bytes, valkey: "redis.Redis"
) -> None:
    async with Client(url) as client:
        with pytest.raises(ServiceError) as caught:
            await client.annotate(picture, {"prompts": [box(8, 8, 24, 24, "broken")]})
    assert (caught.value.status, caught.value.code) == (500, "internal_error")
    assert valkey.keys("mayfly:*:result") == []


class Counting(Echo):
    """Echo that knows how often it was asked."""

    runs = 0

    def finish(self, raw: Shown, item: Shown) -> Finds:
        self.runs += 1
        return super().finish(raw, item)


async def test_broken_connections_lose_no_result_and_make_no_second_job(
    store: Store, key: PrivateKey, settings: Settings
) -> None:
    """Connections are reset before, in and after requests and answers."""
    network = Network(seed=3, resets=0.95)
    model = Counting()
    async with (
        running_worker(store, key, model, settings),
        running_front_door(settings, key) as session,
        proxy(int(url_of(session).rpartition(":")[2].strip("/")), network) as port,
        Client(f"http://127.0.0.1:{port}") as client,
    ):
        items = [Item(n, picture_bytes((40 + n, 40)), BOX_REQUEST) for n in range(40)]
        outcomes = [outcome async for outcome in client.annotate_many(items)]
        network.calm = True
    assert network.resets > 8
    assert [outcome.error for outcome in outcomes] == [None] * 40
    widths = {o.key: o.result.image.width for o in outcomes if o.result}
    assert widths == {n: 40 + n for n in range(40)}
    assert model.runs == 40


async def test_a_job_that_the_service_forgot_is_submitted_anew(
    url: str, picture: bytes, valkey: "redis.Redis"
) -> None:
    """Redis restarted: all jobs are lost, as promised."""
    async with Client(url) as client:
        waiting = asyncio.create_task(client.annotate(picture, SLOW))
        await asyncio.sleep(0.2)
        for key in [*valkey.scan_iter("mayfly:*:job"), *valkey.scan_iter("mayfly:*:image")]:
            valkey.delete(key)
        assert (await waiting).annotations


@pytest.fixture
async def moody() -> AsyncIterator[tuple[str, list[tuple[int, dict[str, str]]], list[str]]]:
    """A front door that refuses as it is told, in this order, and notes the tokens it saw."""
    refusals: list[tuple[int, dict[str, str]]] = []
    tokens: list[str] = []

    async def submit(request: web.Request) -> web.Response:
        await request.read()
        tokens.append(request.headers["Authorization"])
        if refusals:
            status, headers = refusals.pop(0)
            return web.Response(status=status, headers=headers, text="<html>busy</html>")
        return web.json_response({"id": "1"}, status=202)

    app = web.Application()
    app.add_routes([web.post("/v1/jobs", submit)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}", refusals, tokens
    await runner.cleanup()


async def test_refusals_for_now_are_waited_for_with_one_token(
    moody: tuple[str, list[tuple[int, dict[str, str]]], list[str]], picture: bytes
) -> None:
    url, refusals, tokens = moody
    refusals += [(429, {"Retry-After": "1"}), (503, {}), (502, {"Retry-After": "Mon, 1 Jan"})]
    begin = asyncio.get_running_loop().time()
    async with Client(url) as client:
        job = await client.submit(picture, {})
    assert asyncio.get_running_loop().time() - begin >= 1.6
    assert tokens == [f"Bearer {job.token}"] * 4


async def test_patience_ends(
    moody: tuple[str, list[tuple[int, dict[str, str]]], list[str]], picture: bytes
) -> None:
    """A quota that opens in an hour is told now, not waited for."""
    url, refusals, tokens = moody
    refusals += [(429, {"Retry-After": "3600"}), (422, {})]
    async with Client(url) as client:
        for status in (429, 422):
            with pytest.raises(ServiceError) as caught:
                await client.submit(picture, {})
            assert caught.value.status == status
    assert len(tokens) == 2
    with pytest.raises(aiohttp.ClientConnectionError):
        async with Client("http://127.0.0.1:9", patience_s=0.5) as client:
            await client.model()


@pytest.fixture
async def over_tls(tmp_path: Path) -> AsyncIterator[tuple[int, Path]]:
    """The port of a service under a self-signed certificate, and the file with it."""
    certificate, key = self_signed()
    pair = [tmp_path / "cert.pem", tmp_path / "key.pem"]
    for path, content in zip(pair, (certificate, key), strict=True):
        path.write_bytes(content)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair[0], pair[1])

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"default": "m", "models": [{"name": "m", "prompts": 7}]})

    app = web.Application()
    app.add_routes([web.get("/v1/models", models)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield runner.addresses[0][1], pair[0]
    await runner.cleanup()


async def test_what_no_repetition_could_mend_ends_at_once_and_says_what_to_do(
    over_tls: tuple[int, Path], url: str
) -> None:
    """A certificate that nobody vouches for; TLS where there is none; answers in another form. With
    the patience of two minutes, this would outlive its time."""
    port, certificate = over_tls
    for address, trusted, code, told in (
        (f"https://127.0.0.1:{port}", None, "certificate_refused", "self-signed certificate"),
        (url.replace("http://", "https://"), None, "tls_failed", "http:// or with https://"),
        (f"https://127.0.0.1:{port}", certificate, "answer_unknown", "Compare the versions"),
    ):
        async with asyncio.timeout(30), Client(address, ca_file=trusted) as client:
            with pytest.raises(ServiceError) as caught:
                await client.model()
        assert (caught.value.status, caught.value.code) == (0, code)
        assert told in str(caught.value)


async def test_a_lost_acknowledgement_loses_no_result(
    url: str, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable(*_: Any) -> None:
        raise aiohttp.ClientConnectionError

    async with Client(url) as client:
        monkeypatch.setattr(client, "erase", unreachable)
        assert (await client.annotate(picture, BOX_REQUEST)).annotations


async def test_many_images_are_taken_in_order_and_only_when_there_is_room(
    url: str, picture: bytes
) -> None:
    """A consumer that does nothing stops the reading; one image that cannot be read fails alone."""
    read: list[int] = []
    seen: list[Progress] = []

    def reader(number: int) -> Any:
        def now() -> bytes:
            read.append(number)
            if number == 3:
                raise FileNotFoundError(number)
            return picture if number != 5 else b"no image"

        return now

    items = (Item(n, reader(n), BOX_REQUEST) for n in range(12))
    async with Client(url) as client:
        outcomes = client.annotate_many(items, 2, seen.append)
        first = await anext(outcomes)
        await asyncio.sleep(0.3)
        assert len(read) <= 3
        rest = [first, *[outcome async for outcome in outcomes]]
    assert read == list(range(12))
    failed = {o.key: type(o.error) for o in rest if o.error}
    assert failed == {3: FileNotFoundError, 5: ServiceError}
    assert seen[-1] == Progress(12, 2, 10)
    assert [progress.done for progress in seen] == list(range(1, 13))


async def test_what_the_items_raise_is_raised(url: str, picture: bytes) -> None:
    def items() -> Iterator[Item]:
        yield Item(1, picture, BOX_REQUEST)
        raise RuntimeError("the list broke off")

    async with Client(url) as client:
        outcomes = client.annotate_many(items())
        assert (await anext(outcomes)).key == 1
        with pytest.raises(RuntimeError, match="broke off"):
            await anext(outcomes)


async def test_giving_up_erases_what_is_open(
    url: str, picture: bytes, valkey: "redis.Redis"
) -> None:
    async with Client(url) as client:
        outcomes = client.annotate_many(Item(n, picture, SLOW) for n in range(12))
        assert (await anext(outcomes)).result
        assert valkey.keys("mayfly:*:image")
        await outcomes.aclose()
    assert valkey.keys("mayfly:*:image") == []


async def test_models_are_told_by_name(url: str) -> None:
    async with Client(url) as client:
        assert (await client.model()).prompts == ["box"]
        with pytest.raises(ServiceError, match="Served: exemplar") as caught:
            await client.model("nobody")
    assert caught.value.code == "model_unknown"


async def test_without_an_event_loop(url: str, picture: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture)

    def use() -> list[Outcome]:
        with SyncClient(url) as client:
            assert client.info()["version"]
            assert client.model().name == "exemplar"
            assert client.annotate(picture, BOX_REQUEST).annotations
            job = client.submit(picture, BOX_REQUEST)
            assert b"annotation" in client.fetch(job, "voc")
            client.erase(job)
            items = [Item(n, path, BOX_REQUEST) for n in range(5)]
            some = client.annotate_many(items)
            next(some)
            some.close()  # type: ignore[attr-defined]
            return list(client.annotate_many(items))

    outcomes = await asyncio.to_thread(use)
    assert sorted(outcome.key for outcome in outcomes) == [0, 1, 2, 3, 4]


def test_importing_it_loads_no_model_and_no_image_library() -> None:
    code = "import sys, scripts.client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert not {b"torch", b"numpy", b"PIL", b"tqdm", b"arq"} & set(loaded.split())

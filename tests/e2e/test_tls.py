"""TLS as real clients meet it: the front door's, and the one to Redis."""

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientConnectorCertificateError, ClientSession

from api.transport import Certificate
from jobs.settings import Settings, SettingsError
from jobs.store import STORE_ERRORS, Store
from scripts.certificates import fingerprint, self_signed
from tests.conftest import picture_bytes
from tests.e2e.conftest import Service

_ANNOTATE = [sys.executable, "-m", "scripts.cli", "annotate"]


async def test_a_trial_with_a_certificate_made_at_the_start(tmp_path: Path) -> None:
    """`mayfly serve --tls self-signed`: our client annotates over it."""
    service = Service(tmp_path, "--tls", "self-signed")
    try:
        assert service.url.startswith("https://127.0.0.1:")
        (certificate,) = service.tmp.glob("mayfly-*/certificate.pem")
        assert fingerprint(certificate.read_bytes()) in service.log.read_text()
        assert "PRIVATE" not in certificate.read_text() + service.log.read_text()
        picture = tmp_path / "picture.png"
        picture.write_bytes(picture_bytes((200, 200)))
        run = await asyncio.to_thread(
            subprocess.run,
            [*_ANNOTATE, str(picture), "--box", "8,8,24,24", "--server", service.url],
            env={**os.environ, "SSL_CERT_FILE": str(certificate)},
            capture_output=True,
            check=True,
        )
        assert b'"annotations"' in run.stdout
        trusting = ssl.create_default_context(cafile=str(certificate))
        async with ClientSession() as session:
            async with session.get(f"{service.url}/v1/info", ssl=trusting) as answer:
                assert (await answer.json())["transport"]["tls"] == "here"
                assert "Strict-Transport-Security" not in answer.headers, "it is a trial"
            with pytest.raises(ClientConnectorCertificateError):
                await session.get(service.url)  # nobody vouches for it
    finally:
        service.stop()


async def _served(port: int, name: str | None) -> bytes:
    """The certificate that a new connection gets, DER; with SNI if a name is given."""
    anything = ssl._create_unverified_context()
    _, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=anything, server_hostname=name or "127.0.0.1"
    )
    served = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    assert isinstance(served, bytes)
    return served


async def _takes(port: int, newest: ssl.TLSVersion) -> bool:
    """Whether a client that knows no newer version gets through."""
    old = ssl._create_unverified_context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that is what is tested
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, newest
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=old)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize("name", ["localhost", None])
async def test_a_renewed_certificate_is_served_without_a_restart(
    tmp_path: Path, name: str | None
) -> None:
    """Half of a renewal, or a broken one, leaves the old certificate in service."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    pairs = [self_signed() for _ in range(2)]
    ders = [ssl.PEM_cert_to_DER_cert(certificate.decode()) for certificate, _ in pairs]
    cert.write_bytes(pairs[0][0])
    key.write_bytes(pairs[0][1])
    certificate = Certificate(cert, key)
    server = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=certificate.context
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await _served(port, name) == ders[0]
        cert.write_bytes(pairs[1][0])
        certificate.look()
        assert await _served(port, name) == ders[0], "its key is not there yet"
        key.write_bytes(pairs[1][1])
        certificate.look()
        assert await _served(port, name) == ders[1]
        key.unlink()
        certificate.look()
        assert await _served(port, name) == ders[1]


def test_what_is_no_certificate_is_refused_with_a_reason(tmp_path: Path) -> None:
    """A key of another certificate, one with a password, a file that is not there."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(self_signed()[0])
    with pytest.raises(SettingsError, match="cannot be read"):
        Certificate(cert, key)
    key.write_bytes(self_signed()[1])
    with pytest.raises(SettingsError, match="do not hold"):
        Certificate(cert, key)
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:x", "-out", key],
        check=True,
    )
    with pytest.raises(SettingsError, match="without a password"):
        Certificate(cert, key)


async def test_a_front_door_with_real_files_renews_while_it_runs(
    valkey_url: str, valkey: object, tmp_path: Path
) -> None:
    """As a process, with uvloop: HSTS, nothing below TLS 1.2, a certificate renewed by rename."""
    from jobs.sealing import PrivateKey, key_text

    (tmp_path / "pub").write_text(key_text(PrivateKey.new().public.raw))
    old, new = self_signed(), self_signed()
    for path, content in (("cert.pem", old[0]), ("key.pem", old[1])):
        (tmp_path / path).write_bytes(content)
    port = _free_port()
    environment = {
        **os.environ,
        "MAYFLY_REDIS_URL": valkey_url,
        "MAYFLY_WORKER_PUBLIC_KEY_FILE": str(tmp_path / "pub"),
        "MAYFLY_TLS_CERT": str(tmp_path / "cert.pem"),
        "MAYFLY_TLS_KEY": str(tmp_path / "key.pem"),
        "MAYFLY_HOST": "0.0.0.0",
        "MAYFLY_PORT": str(port),
    }
    with (tmp_path / "log").open("wb") as log:
        api = subprocess.Popen([sys.executable, "-m", "api"], env=environment, stderr=log)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                assert await _served(port, None) == ssl.PEM_cert_to_DER_cert(old[0].decode())
                break
            await asyncio.sleep(0.05)
        trusting = ssl.create_default_context(cadata=old[0].decode())
        url = f"https://127.0.0.1:{port}/healthz"
        async with ClientSession() as session, session.get(url, ssl=trusting) as answer:
            assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert await _takes(port, ssl.TLSVersion.TLSv1_2)
        assert not await _takes(port, ssl.TLSVersion.TLSv1_1)
        for path, content in (("cert.pem", new[0]), ("key.pem", new[1])):
            (tmp_path / "next").write_bytes(content)
            (tmp_path / "next").rename(tmp_path / path)
        deadline = time.monotonic() + 10
        while await _served(port, "localhost") != ssl.PEM_cert_to_DER_cert(new[0].decode()):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            await asyncio.sleep(0.1)
    finally:
        api.send_signal(signal.SIGTERM)
        assert api.wait(15) == 0


@contextlib.asynccontextmanager
async def _tls_in_front_of(socket: str, certificate: bytes, key: bytes) -> AsyncIterator[int]:
    """What a managed server's TLS port is; the Valkey of the tests is built without."""
    folder = Path(socket.removeprefix("unix://")).parent
    pem = folder / f"mayfly-test-{os.getpid()}.pem"
    pem.write_bytes(certificate + key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    pem.unlink()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_unix_connection(socket.removeprefix("unix://"))
        await asyncio.gather(pump(reader, forth), pump(back, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_redis_over_tls_is_spoken_to_only_if_its_certificate_is_its_own(
    valkey_url: str, valkey: object, tmp_path: Path
) -> None:
    ours, theirs = self_signed(), self_signed()
    (tmp_path / "ca.pem").write_bytes(ours[0])
    (tmp_path / "other.pem").write_bytes(theirs[0])

    async def answers(port: int, host: str, ca: str) -> bool:
        url = f"rediss://{host}:{port}/0?ssl_ca_certs={tmp_path / ca}"
        store = Store.open(Settings(redis_url=url))
        try:
            return (await store.fleet()).workers == []
        except STORE_ERRORS:
            return False
        finally:
            await store.close()

    async with _tls_in_front_of(valkey_url, *ours) as port:
        assert await answers(port, "localhost", "ca.pem")
        assert not await answers(port, "localhost", "other.pem"), "another authority's"
        assert not await answers(port, "127.0.0.2", "ca.pem"), "another host's"


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

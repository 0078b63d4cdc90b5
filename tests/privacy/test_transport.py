"""Whose address counts, and what may come in the clear: a proxy is believed only by name."""

import dataclasses
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from api.app import make_app
from api.main import run
from api.transport import came_encrypted, client_address
from jobs.sealing import PrivateKey, key_text
from jobs.settings import Settings, SettingsError
from jobs.store import connection_pool
from tests.calls import call, submit
from tests.conftest import running_front_door

PROXIES = ("10.0.0.7", "192.168.0.0/16", "fd00::/8")


class _Peer:
    """A connection from an address, as far as a request looks at it."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get_extra_info(self, name: str, default: object = None) -> object:
        return (self._address, 5000) if name == "peername" else default


def _request(settings: Settings, peer: str, *headers: tuple[str, str]) -> aiohttp.web.Request:
    app = make_app(settings, PrivateKey.new().public)
    return make_mocked_request("GET", "/", CIMultiDict(headers), app=app, transport=_Peer(peer))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # nobody chooses their address
        ("10.0.0.8", ["198.51.100.1"], "10.0.0.8"),  # the neighbour of a proxy is not one
        ("10.0.0.7", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.7", ["1.2.3.4, 198.51.100.1"], "198.51.100.1"),  # the first is a client's claim
        ("10.0.0.7", ["1.2.3.4", "198.51.100.1"], "198.51.100.1"),  # in a header of its own
        ("10.0.0.7", ["198.51.100.1, 192.168.3.4"], "198.51.100.1"),  # two proxies
        ("10.0.0.7", ["192.168.9.9"], "192.168.9.9"),
        ("10.0.0.7", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.7", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.7", ["2001:DB8:0::1"], "2001:db8::1"),
        ("10.0.0.7", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.7", ["198.51.100.1"], "198.51.100.1"),
        ("fd00::1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.7", ["198.51.100.1, evil\x0bname"], "10.0.0.7"),
        ("10.0.0.7", ["unknown"], "10.0.0.7"),
        ("10.0.0.7", [""], "10.0.0.7"),
        ("10.0.0.7", [], "10.0.0.7"),
        ("", [], "unknown"),
    ],
)
def test_the_address_is_the_peers_unless_a_named_proxy_speaks_for_another(
    settings: Settings, peer: str, forwarded: list[str], address: str
) -> None:
    settings = dataclasses.replace(settings, trusted_proxies=PROXIES)
    request = _request(settings, peer, *(("X-Forwarded-For", value) for value in forwarded))
    assert client_address(request) == address


@pytest.mark.parametrize(
    ("peer", "schemes", "encrypted"),
    [
        ("10.0.0.7", ["https"], True),
        ("10.0.0.7", ["HTTPS"], True),
        ("10.0.0.7", ["https, https"], True),
        ("10.0.0.7", [], False),
        ("10.0.0.7", ["http"], False),
        ("10.0.0.7", ["http, https"], False),  # the client's own part was in the clear
        ("10.0.0.7", ["https", "http"], False),
        ("203.0.113.9", ["https"], False),
        ("127.0.0.1", ["https"], False),
    ],
)
def test_a_named_proxy_is_believed_what_its_client_spoke(
    settings: Settings, peer: str, schemes: list[str], encrypted: bool
) -> None:
    settings = dataclasses.replace(settings, trusted_proxies=PROXIES)
    request = _request(settings, peer, *(("X-Forwarded-Proto", value) for value in schemes))
    assert came_encrypted(request) is encrypted


async def test_a_proxy_whose_client_came_in_the_clear_is_refused_before_the_body(
    settings: Settings, key: PrivateKey, store: object, picture: bytes
) -> None:
    """And what it says of TLS brings browsers to insist on it."""
    settings = dataclasses.replace(settings, trusted_proxies=("127.0.0.1",))
    plain, encrypted = {"X-Forwarded-Proto": "http"}, {"X-Forwarded-Proto": "https"}
    async with running_front_door(settings, key) as session:
        refused = await submit(session, picture, headers=plain)
        assert (refused.status, refused.code) == (403, "tls_required")
        assert refused.headers["Connection"] == "close"
        assert (await call(session, "GET", "/v1/info", headers=plain)).status == 403
        assert (await call(session, "GET", "/healthz", headers=plain)).status == 200
        taken = await submit(session, picture, headers=encrypted)
        assert taken.status == 202
        assert taken.headers["Strict-Transport-Security"] == "max-age=31536000"
        local = await call(session, "GET", "/v1/info")
        assert local.json["transport"] == {"tls": "proxy", "trusted_proxies": ["127.0.0.1"]}
        assert "Strict-Transport-Security" not in local.headers


async def test_headers_of_a_proxy_that_is_not_named_change_nothing(
    front_door: aiohttp.ClientSession, picture: bytes
) -> None:
    answer = await submit(front_door, picture, headers={"X-Forwarded-Proto": "https"})
    assert answer.status == 202
    assert "Strict-Transport-Security" not in answer.headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org", ""])
async def test_plain_http_on_a_network_is_refused(
    settings: Settings, key: PrivateKey, host: str, tmp_path: Path
) -> None:
    public = tmp_path / "worker.pub"
    public.write_text(key_text(key.public.raw))
    settings = dataclasses.replace(settings, host=host, worker_public_key_file=public)
    with pytest.raises(SettingsError, match=r"MAYFLY_TLS_CERT.*MAYFLY_TRUSTED_PROXIES"):
        await run(settings)


@pytest.mark.parametrize(
    "environment",
    [
        {"MAYFLY_TLS_CERT": "/cert.pem"},
        {"MAYFLY_TLS_KEY": "/key.pem"},
        {"MAYFLY_TRUSTED_PROXIES": "proxy.example.org"},
        {"MAYFLY_TRUSTED_PROXIES": "10.0.0.7/8"},
    ],
)
def test_half_a_transport_setting_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=next(iter(environment))):
        Settings.from_env(environment)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://valkey:6379/0", "without TLS"),
        ("redis://10.0.0.5:6379", "without TLS"),
        ("redis:///0?host=10.0.0.5", "without TLS"),
        ("rediss://valkey:6379?ssl_cert_reqs=none", "certificate off"),
        ("rediss://valkey:6379?ssl_cert_reqs=optional", "certificate off"),
        ("rediss://valkey:6379?ssl_check_hostname=false", "certificate off"),
        ("http://valkey", "must begin with"),
        ("", "is not set"),
    ],
)
def test_redis_is_not_spoken_to_in_the_clear(url: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        connection_pool(Settings(redis_url=url))


@pytest.mark.parametrize(
    "url",
    [
        "unix:///run/valkey.sock",
        "redis://127.0.0.1:6379/0",
        "redis://localhost",
        "redis://[::1]:6379",
        "redis://",
        "rediss://valkey:6379",
        "rediss://valkey:6379?ssl_ca_certs=/ca.pem&ssl_check_hostname=true",
    ],
)
def test_redis_is_spoken_to_on_this_machine_or_over_tls(url: str) -> None:
    assert connection_pool(Settings(redis_url=url))

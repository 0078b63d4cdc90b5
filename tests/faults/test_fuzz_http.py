"""Whatever is sent to the front door, it answers as documented or hangs up, and goes on.

Two kinds of senders: one that reads our OpenAPI document, one that does not care about HTTP.
"""

import asyncio
import dataclasses
import json
import logging
import os
import re
import sys
from collections import Counter
from pathlib import Path

import aiohttp
import hypothesis
import pytest
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import strategies as st

from jobs.sealing import Capability, PrivateKey
from jobs.settings import Settings
from tests.calls import BOX_REQUEST, call, submit
from tests.conftest import picture_bytes, running_front_door
from worker.queue import QueueWorker

TOKEN = Capability.new().token
ROOT = Path(__file__).parents[2]
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,unsupported_method,"
    "allow_header_conformance"
)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Errors in the log, but for those that say that a request was not HTTP."""
    return [
        str(record.exc_info or record.getMessage())
        for record in caplog.records
        if record.levelno >= logging.ERROR
        and not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
    ]


async def test_the_openapi_document_holds_for_generated_requests(
    service: aiohttp.ClientSession,
    picture: bytes,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Good and bad requests made from the document; half of the jobs they ask for are there."""
    caplog.set_level(logging.INFO, "api")
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([(await submit(service, picture)).json for _ in range(60)]))
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        "run",
        f"{service._base_url}/openapi.json",
        *("--phases", "coverage,fuzzing", "--checks", CHECKS, "--seed", "1"),
        *("--max-examples", "60", "--continue-on-failure"),
        *("--generation-database", "none", "--suppress-health-check", "all", "--no-color"),
        cwd=ROOT,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.faults.fuzz_hooks", "FUZZ_JOBS": str(jobs)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    print(said)  # noqa: T201 - pytest shows it where it is needed
    assert process.returncode == 0, said
    cases = re.search(r"(\d+) generated, (\d+) passed", said)
    assert cases
    assert int(cases[1]) > 500
    assert cases[1] == cases[2]
    assert complaints(caplog) == []
    requests = [record for record in caplog.records if record.name == "api.access_log"]
    reached = {record.fields["status"] for record in requests}  # type: ignore[attr-defined]
    assert reached >= {200, 202, 204, 400, 401, 404, 405, 410, 415, 422}


# --- senders that do not care about HTTP ---


def mixed(usual: list[bytes], odd: list[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly something usual, so that the odd things next to it are reached."""
    return st.integers(0, 5).flatmap(lambda dice: st.sampled_from(usual if dice else odd))


METHODS = mixed(
    [b"GET", b"POST", b"POST", b"DELETE"],
    [
        b"HEAD",
        b"PUT",
        b"OPTIONS",
        b"TRACE",
        b"CONNECT",
        b"get",
        b"",
        b"G\xc9T",
        b"A" * 9000,
        b"PRI",
    ],
)
JOB = b"/v1/jobs/" + Capability.from_token(TOKEN).id.encode()
JSON = json.dumps(BOX_REQUEST).encode().replace(b" ", b"").replace(b'"', b"%22")
TARGETS = mixed(
    [
        b"/v1/jobs",
        b"/v1/jobs?request=" + JSON,
        JOB,
        JOB + b"/result",
        JOB + b"/events",
        b"/healthz",
    ],
    [
        b"",
        b"*",
        b"http://x/v1/jobs",
        b"http://[/v1/jobs",
        b"//",
        b"/\x00",
        b"/\xff\xfe",
        b"/v1/jobs/%00",
        b"/v1/jobs/%C3%A9",
        b"/v1/jobs/\xc3\xa9/result",
        b"/v1/jobs/%FF%FE/events",
        b"/v1/jobs/%ED%A0%80",
        b"/v1/jobs/..%2f..%2fetc",
        b"/pages/..%2fdocs.html",
        b"/" + b"a" * 9000,
        JOB + b"?wait=NaN",
        JOB + b"?wait=%D9%A3",
        JOB + b"/result?wait=1e9",
        JOB + b"/result?format=%00",
        b"/v1/jobs?request=%ED%A0%80",
        b"/v1/jobs?request=%FF",
        b"/v1/jobs?request=%22%5Cud800%22",
        b"/v1/jobs?request=" + b"[" * 8000,
        b"/v1/jobs?request=" + JSON.replace(b"coin", b"%5Cud800"),
        b"/v1/jobs?request=" + JSON.replace(b"coin", b"%00"),
        b"/v1/jobs?request=" + JSON.replace(b"8.0", b"1e999"),
        b"/v1/jobs?request=" + JSON.replace(b"8.0", b"-1e308"),
        b"/v1/jobs?request=" + JSON.replace(b"8.0", b"NaN"),
        b"/v1/jobs?format=%FF&format=coco",
        b"/v1/jobs?" + b"a=b&" * 2000,
    ],
)
HEADERS = st.sampled_from(
    [
        b"Authorization: Bearer " + TOKEN.encode(),
        b"Authorization: Bearer " + TOKEN.encode(),
        b"Authorization: Bearer \xff\xfe",
        b"Authorization: Bearer \xc3\xa9" + TOKEN.encode()[2:],
        b"Authorization: Bearer",
        b"Authorization: Bearer " + b"A" * 7000,
        b"Authorization: Basic \xff",
        b"Authorization: \xed\xa0\x80",
        b"X-API-Key: \xff\xfe",
        b"X-API-Key: \xc3\xa9",
        b"Idempotency-Key: me",
        b"Idempotency-Key: \xff\xfe",
        b"Idempotency-Key: \xc3\xa9",
        b"Idempotency-Key: \x01\x02\x7f",
        b"Idempotency-Key: \x00",
        b"Idempotency-Key: " + b"k" * 256,
        b"Prefer: wait=0",
        b"Prefer: wait=\xd9\xa3",
        b"Prefer: wait=-1, wait=\xff, ;;;==",
        b"Prefer: " + b"wait=," * 1000,
        b"Range: bytes=0-1",
        b"Range: \xff",
        b"Sec-Purpose: \xff",
        b"Expect: 100-continue",
        b"Expect: the unexpected",  # (one that is not UTF-8 makes aiohttp itself answer 500)
        b"Upgrade: websocket",
        b"Upgrade: h2c\r\nHTTP2-Settings: AAAA\r\nConnection: Upgrade",
        b"Content-Encoding: gzip",
        b"Content-Encoding: \xff",
        b"Content-Type: image/jpeg; charset=\xff",
        b"Content-Type: \xff/\xfe",
        b"Content-Type: multipart/form-data",
        b"Host: \xff",
        b"Host: a\r\nHost: b",
        b"Cookie: \xff=\xfe; a",
        b"Accept: \xff",
        b"no colon at all",
        b": no name",
        b"a b: space in the name",
        b" folded: once",
        b"X\xff: name",
        b"X: " + b"v" * 9000,
        b"\r\n".join(b"X-%d: flood" % n for n in range(2000)),
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: \xff",
    ]
)
LENGTHS = mixed(
    [b"true"],
    [b"", b"0", b"1", b"-1", b"+5", b"5, 5", b"0x10", b"\xd9\xa3", b"9" * 30, b"20000000", b"none"],
)
BOUNDARIES = mixed(
    [b"boundary=b"],
    [
        b"boundary=",
        b'boundary="b"',
        b"boundary=" + b"b" * 100,
        b"boundary=\xff",
        b"",
        b"boundary=c",
    ],
)
PICTURE = picture_bytes()
PARTS = st.lists(
    st.builds(
        lambda name, more, body: b"--b\r\n" + name + more + b"\r\n" + body + b"\r\n",
        mixed(
            [b'Content-Disposition: form-data; name="image"\r\n'],
            [
                b'Content-Disposition: form-data; name="request"\r\n',
                b'Content-Disposition: form-data; name=""\r\n',
                b'Content-Disposition: form-data; name="\xc3\xa9\xff"\r\n',
                b'Content-Disposition: form-data; name="../../\x01"\r\n',
                b"Content-Disposition: form-data; name*=utf-8''%FF%ED%A0%80\r\n",
                b"Content-Disposition: form-data; name*=klingon'x'%41\r\n",
                b"Content-Disposition: form-data; name*0=im; name*1=age\r\n",
                b'Content-Disposition: attachment; filename="\xff"\r\n',
                b'Content-Disposition: form-data; name="_charset_"\r\n',
                b'Content-Disposition: form-data; name="' + b"n" * 7000 + b'"\r\n',
                b"Content-Disposition: ;;;\r\n",
                b"Content-Disposition\r\n",
                b"",
            ],
        ),
        mixed(
            [b""],
            [
                b"Content-Type: multipart/mixed; boundary=inner\r\n",
                b"Content-Type: multipart/mixed\r\n",
                b"Content-Type: \xff\r\n",
                b"Content-Length: 5\r\n",
                b"Content-Length: x\r\n",
                b"Content-Length: 99999999999\r\n",
                b"Content-Transfer-Encoding: base64\r\n",
                b"Content-Encoding: gzip\r\n",
                b"X: y\r\n" * 3000,
                b"no colon\r\n",
                b" folded\r\n",
            ],
        ),
        mixed(
            [PICTURE, json.dumps(BOX_REQUEST).encode()],
            [b"", b"\xff", b"--inner\r\n\r\nx\r\n--inner--", b"--b", b"{" * 5000, b"\r\n" * 5000],
        ),
    ),
    max_size=4,
).map(b"".join)
FORMS = st.tuples(
    st.one_of(
        PARTS,
        PARTS,
        st.just(b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * 10_000),
    ),
    st.sampled_from([b"--b--\r\n", b"--b--\r\n", b"--b--", b"--b", b""]),
).map(b"".join)
CHUNKED = st.sampled_from(
    [
        b"0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;ext=\xff\r\nhello\r\n0\r\nTrailer: \xff\r\n\r\n",
        b"-1\r\nx\r\n",
        b"ffffffffffffffffffff\r\nx",
        b"5\r\nhelloworld\r\n",
        b"zz\r\n",
        b"1\r\nx\r\n" * 3000 + b"0\r\n\r\n",
    ]
)


@st.composite
def broken_requests(draw: st.DrawFn) -> bytes:
    """A request of which anything may be wrong; the connection is to be closed behind it."""
    headers = draw(st.lists(HEADERS, max_size=2))
    kind = draw(st.sampled_from(["none", "image", "form", "form", "chunked", "noise"]))
    body = b""
    if kind == "image":
        headers.append(b"Content-Type: image/png")
        body = draw(st.sampled_from([PICTURE, PICTURE[:50], b"\x89PNG"]))
    elif kind == "form":
        headers.append(b"Content-Type: multipart/form-data; " + draw(BOUNDARIES))
        body = draw(FORMS)
    elif kind == "chunked":
        headers += [b"Transfer-Encoding: chunked", b"Content-Type: image/png"]
        body = draw(CHUNKED)
    elif kind == "noise":
        body = draw(st.binary(max_size=200))
    length = draw(LENGTHS if kind != "chunked" else st.sampled_from([b"none", b"none", b"5"]))
    if length != b"none":
        length = b"%d" % len(body) if length == b"true" else length
        headers.append(b"Content-Length: " + length)
    draw(st.randoms(use_true_random=False)).shuffle(headers)
    version = draw(
        mixed([b"HTTP/1.1"], [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"http/1.1", b"", b"X"])
    )
    start = b" ".join([draw(METHODS), draw(TARGETS), version])
    end = draw(mixed([b"\r\n"], [b"\n", b"\r", b""]))
    request = end.join([start, b"Host: x", b"Connection: close", *headers, b""]) + end + body
    return request[: len(request) // 2] if draw(st.integers(0, 20)) == 20 else request


def generated(strategy: st.SearchStrategy[bytes], count: int) -> list[bytes]:
    """Always the same examples."""
    found = []

    @hypothesis.settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(example: bytes) -> None:
        found.append(example)

    collect()
    return found


async def answer(session: aiohttp.ClientSession, sent: bytes) -> bytes:
    """Send some bytes; all that comes back until the server closes the connection."""
    url = session._base_url
    assert url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    received = b""
    try:
        writer.write(sent)
        while data := await reader.read(65536):
            received += data
    except OSError:  # the server hung up before it had read everything
        pass
    finally:
        writer.close()
    return received


async def test_broken_requests_are_answered_or_hung_up_on(
    worker: QueueWorker,
    settings: Settings,
    key: PrivateKey,
    picture: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Never a 500, never a connection that stays open, and the server goes on."""
    hasty = dataclasses.replace(settings, upload_timeout_s=0.5)
    statuses: Counter[int] = Counter()
    gate = asyncio.Semaphore(100)
    async with running_front_door(hasty, key) as session:

        async def attempt(sent: bytes) -> str | None:
            try:
                async with gate, asyncio.timeout(10):
                    received = await answer(session, sent)
            except TimeoutError:
                return f"left open: {sent[:2000]!r}"
            found = [int(status) for status in re.findall(rb"HTTP/\d\.\d (\d{3}) ", received)]
            statuses.update(found or [0])
            return f"{found}: {sent[:2000]!r}" if any(s >= 500 for s in found) else None

        for token in (TOKEN, None):
            assert (await submit(session, picture, token=token)).status == 202
        broken = await asyncio.gather(*map(attempt, generated(broken_requests(), 2000)))
        assert [complaint for complaint in broken if complaint] == []
        assert (await call(session, "GET", "/healthz")).status == 200
        assert (await submit(session, picture)).status == 202
    print(sorted(statuses.items()))  # noqa: T201 - pytest shows it where it is needed
    assert set(statuses) >= {200, 202, 400, 401, 404, 405, 415, 422}
    assert complaints(caplog) == []


async def test_connect_without_an_address_does_not_hold_the_connection(
    front_door: aiohttp.ClientSession,
) -> None:
    """aiohttp alone would neither answer it nor ever close the connection."""
    async with asyncio.timeout(5):
        received = await answer(front_door, b"CONNECT \r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"method_not_allowed" in received

"""A small client for the HTTP contract. Needs aiohttp only; holds nothing but the open jobs."""

import asyncio
import base64
import io
import json
import os
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp

_RETRY_STATUSES = (429, 503)
_RETRIES = 8


class ServiceError(Exception):
    """The service refused or failed a job.

    Attributes:
        status: HTTP status.
        code: the problem's stable code.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{detail} ({status} {code})")
        self.status = status
        self.code = code


class Client:
    """Submits images and fetches results, without submitting twice and without losing a result.

    Each job gets a capability made here, so that a repeated submission is the same job; results
    are read under a lease and acknowledged when they have arrived.

    Args:
        url: where the front door listens, such as ``http://127.0.0.1:8080``.
        api_key: the account's key, if the service wants one.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        headers = {"X-API-Key": api_key} if api_key else {}
        timeout = aiohttp.ClientTimeout(total=60, sock_connect=5)
        self._session = aiohttp.ClientSession(url, headers=headers, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def info(self) -> dict[str, Any]:
        """Version, limits and retention of the service. Asks once, to see whether it is there."""
        async with self._session.get("/v1/info") as response:
            info: dict[str, Any] = await response.json()
            return info

    async def annotate(
        self,
        image: bytes,
        request: Mapping[str, Any],
        references: Mapping[str, bytes] | None = None,
        result_format: str = "mayfly",
    ) -> bytes:
        """Submit one image and return its result in the given format.

        Args:
            image: JPEG, PNG or WebP.
            request: the contract's request, such as ``{"prompts": [{"type": "box", …}]}``.
            references: further images that prompts name.

        Raises:
            ServiceError: refused, failed, or expired before a worker came to it.
        """
        job = await self.submit(image, request, references)
        return await self.fetch(job, result_format)

    async def submit(
        self,
        image: bytes,
        request: Mapping[str, Any],
        references: Mapping[str, bytes] | None = None,
    ) -> "Job":
        """Submit one image; safe to repeat, because the job's token is made here."""
        token = base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")

        def form() -> aiohttp.FormData:
            data = aiohttp.FormData(default_to_multipart=True)
            data.add_field("request", json.dumps(request), content_type="application/json")
            for name, content in {"image": image, **(references or {})}.items():
                data.add_field(name, io.BytesIO(content), content_type="application/octet-stream")
            return data

        _, body = await self._call("POST", "/v1/jobs", token, data=form)
        return Job(json.loads(body)["id"], token)

    async def fetch(self, job: "Job", result_format: str = "mayfly") -> bytes:
        """Wait for the result, read it under a lease, acknowledge it."""
        reader = uuid.uuid4().hex
        path = f"/v1/jobs/{job.id}/result"
        while True:
            status, body = await self._call(
                "GET", path, job.token, reader, params={"wait": "25", "format": result_format}
            )
            if status == 200:
                break
        await self._call("DELETE", f"/v1/jobs/{job.id}", job.token, reader)
        return body

    async def fetch_once(self, job: "Job") -> int:
        """The status of a plain fetch, which takes the result if there is one."""
        async with self._session.get(
            f"/v1/jobs/{job.id}/result", headers={"Authorization": f"Bearer {job.token}"}
        ) as response:
            return response.status

    async def _call(
        self,
        method: str,
        path: str,
        token: str,
        reader: str | None = None,
        data: Any = None,
        params: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {token}"}
        if reader:
            headers["Idempotency-Key"] = reader
        for attempt in range(_RETRIES + 1):
            pause = min(0.2 * 2**attempt, 5.0)
            try:
                async with self._session.request(
                    method, path, headers=headers, params=params, data=data() if data else None
                ) as response:
                    body = await response.read()
                    if response.status < 400:
                        return response.status, body
                    problem = _problem(response.status, body)
                    if response.status not in _RETRY_STATUSES or attempt == _RETRIES:
                        raise problem
                    pause = float(response.headers.get("Retry-After", pause))
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError):
                if attempt == _RETRIES:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")


class Job:
    """A submitted job: its id, and the token that owns it."""

    def __init__(self, job_id: str, token: str) -> None:
        self.id = job_id
        self.token = token

    def __repr__(self) -> str:
        return f"Job({self.id})"


def _problem(status: int, body: bytes) -> ServiceError:
    try:
        document = json.loads(body)
        return ServiceError(status, document["code"], document["detail"])
    except (ValueError, KeyError, TypeError):
        return ServiceError(status, "unknown", "The answer is not one of this service's.")

"""Calls the service and holds each answer against the OpenAPI document."""

import json
import re
from typing import Any, NamedTuple

import aiohttp
import jsonschema

from api.openapi import DOCUMENT

BOX = [8.0, 8.0, 24.0, 24.0]
BOX_REQUEST = {"prompts": [{"type": "box", "box": BOX, "label": "coin"}]}


class Answer(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem's code."""
        return str(self.json["code"])


async def call(
    session: aiohttp.ClientSession, method: str, path: str, token: str | None = None, **more: Any
) -> Answer:
    """One request; fails when the answer is not what the OpenAPI document promises."""
    headers = dict(more.pop("headers", {}))
    if token:
        headers["Authorization"] = f"Bearer {token}"
    async with session.request(method, path, headers=headers, **more) as response:
        answer = Answer(response.status, response.headers, await response.read())
    check_documented(method, path, answer)
    return answer


async def submit(
    session: aiohttp.ClientSession,
    image: Any,
    request: Any = BOX_REQUEST,
    token: str | None = None,
    **more: Any,
) -> Answer:
    """POST a raw image with its request in the query."""
    headers = {"Content-Type": "image/png", **more.pop("headers", {})}
    text = request if isinstance(request, str) else json.dumps(request)
    return await call(
        session,
        "POST",
        "/v1/jobs",
        token,
        data=image,
        params={"request": text, **more.pop("params", {})},
        headers=headers,
        **more,
    )


def check_documented(method: str, path: str, answer: Answer) -> None:
    kind = answer.headers.get("Content-Type", "").partition(";")[0]
    if answer.status >= 400 and method != "HEAD":
        assert kind == "application/problem+json", (method, path, answer.status, kind)
        _validate(answer.json, DOCUMENT["components"]["schemas"]["Problem"])
        assert answer.json["status"] == answer.status
    operation = _operation(method, path)
    if operation is None:
        assert answer.status in (200, 404, 405), (method, path, answer.status)
        return
    documented = operation["responses"]
    assert str(answer.status) in documented, f"{method} {path} answered {answer.status}"
    content = documented[str(answer.status)].get("content", {})
    if content:
        assert kind in content, f"{method} {path} {answer.status} answered {kind}"
        if kind == "application/json":
            _validate(answer.json, content[kind]["schema"])
    else:
        assert answer.body == b""


def _operation(method: str, path: str) -> Any:
    path = path.partition("?")[0]
    for template, operations in DOCUMENT["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            return operations.get(method.lower())
    return None


def _validate(body: Any, schema: Any) -> None:
    jsonschema.validate(body, {**schema, "components": DOCUMENT["components"]})

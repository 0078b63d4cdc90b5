"""The document describes the service, and the service is what the document describes."""

import aiohttp
from openapi_spec_validator import OpenAPIV31SpecValidator

from api.app import ROUTES
from api.openapi import DOCUMENT
from tests.calls import call

PAGES = {"/", "/openapi.json", "/docs", "/usage", "/privacy", r"/pages/{name:[a-z]+\.(js|css)}"}


async def test_it_is_served_and_valid_openapi_3_1(front_door: aiohttp.ClientSession) -> None:
    document = (await call(front_door, "GET", "/openapi.json")).json
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_every_route_is_documented_and_every_documented_route_is_there() -> None:
    served = {(route.method.lower(), route.path) for route in ROUTES if route.path not in PAGES}
    documented = {(method, path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert served == documented


def test_every_operation_names_its_errors_as_problems() -> None:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert "application/problem+json" in answer["content"], (path, method, status)

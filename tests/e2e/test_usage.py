"""The statistics outlive every part, and the operator sees them drawn."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.sync_api import Page

from scripts.client import Client
from tests.calls import BOX_REQUEST
from tests.conftest import picture_bytes
from tests.e2e.conftest import Service
from tests.e2e.test_page import browser, page
from tests.e2e.test_page import pytestmark as needs_browser
from tests.faults.cluster import free_ports

__all__ = ["browser", "page"]  # pytest finds them by their names


async def _annotated(service: Service) -> int:
    async with (
        aiohttp.ClientSession(service.url) as session,
        session.get("/v1/usage") as response,
    ):
        rows: list[dict[str, Any]] = (await response.json())["usage"]
    return sum(row["jobs"] for row in rows if row["outcome"] == "annotated")


async def _annotate(service: Service) -> None:
    async with Client(service.url) as client:
        await client.annotate(picture_bytes((200, 200)), BOX_REQUEST)


async def test_counts_survive_a_killed_front_door_a_killed_worker_and_a_restart(
    tmp_path: Path,
) -> None:
    """The last job is counted when the service is told to stop right after it."""
    [port] = free_ports(1)
    first = Service(tmp_path, "--port", str(port))
    try:
        await _annotate(first)
        for role in ("api", "worker"):
            first.child(role).kill()
            await _annotate(first)
    finally:
        first.stop()
    (tmp_path / "again").mkdir()
    second = Service(tmp_path / "again", MAYFLY_DATA_DIR=str(tmp_path / "data"))
    try:
        assert await _annotated(second) == 3
    finally:
        second.stop()


@pytest.fixture
def counted(running: Service) -> None:
    with ThreadPoolExecutor(1) as thread:  # the browser has a loop in this one
        thread.submit(asyncio.run, _annotate(running)).result()


@needs_browser
def test_the_page_draws_what_was_counted(running: Service, counted: None, page: Page) -> None:
    page.goto(running.url + "/usage")
    page.wait_for_selector("#charts section")
    assert page.locator("#charts svg.chart").count() == 4
    assert "annotated: " in page.locator(".chart rect title").first.text_content()  # type: ignore[operator]
    assert page.locator("#charts td", has_text="annotated").count() >= 1
    with page.expect_download() as download:
        page.click("#csv")
    assert Path(download.value.path()).read_text().startswith("day,model,outcome,jobs,")

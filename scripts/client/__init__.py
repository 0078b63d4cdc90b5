"""A client for the HTTP contract, to import: `Client` for asyncio, `SyncClient` for everybody else.

    from scripts.client import SyncClient, box

    with SyncClient("http://127.0.0.1:8080") as client:
        image = Path("picture.png").read_bytes()
        result = client.annotate(image, {"prompts": [box(184, 103, 228, 146, label="coin")]})
        for find in result.annotations:
            print(find.label, find.score, find.box)

It needs aiohttp and msgspec, holds nothing but the open jobs, and tells nobody anything but the
service. A job is never submitted twice, because its capability is made here and goes with each
repetition; a result is never lost, because it is read under a lease and acknowledged when it is
here.
"""

from scripts.client.calls import BROKEN, FAILURES, ServiceError
from scripts.client.many import Item, Outcome, Picture, Progress
from scripts.client.service import Client, Job, Wish, box
from scripts.client.sync import SyncClient

__all__ = [
    "BROKEN",
    "FAILURES",
    "Client",
    "Item",
    "Job",
    "Outcome",
    "Picture",
    "Progress",
    "ServiceError",
    "SyncClient",
    "Wish",
    "box",
]

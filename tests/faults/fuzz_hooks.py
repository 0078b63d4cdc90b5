"""What schemathesis cannot know: what a picture is, and which jobs there are.

It loads this module by ``SCHEMATHESIS_HOOKS``; ``FUZZ_JOBS`` names a file with ids and tokens.
"""

import itertools
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import schemathesis
from hypothesis import strategies as st

from tests.conftest import picture_bytes

_pictures = [picture_bytes(kind=kind) for kind in ("PNG", "JPEG", "WEBP")]
_images = st.one_of(
    st.sampled_from(_pictures),
    st.sampled_from(_pictures),
    st.binary(max_size=100),
    st.tuples(st.sampled_from(_pictures), st.integers(0, 200)).map(lambda cut: cut[0][: cut[1]]),
)
_calls = itertools.count()
_jobs = [(job["id"], job["token"]) for job in json.loads(Path(os.environ["FUZZ_JOBS"]).read_text())]

for media_type in ("image/png", "image/jpeg", "image/webp"):
    schemathesis.openapi.media_type(media_type, _images)


@schemathesis.hook
def flatmap_body(context: schemathesis.HookContext, body: Any) -> st.SearchStrategy[Any]:
    """Forms mostly have an image in them."""
    submits = context.operation is not None and context.operation.path == "/v1/jobs"
    if submits and isinstance(body, dict) and "image" in body:
        return st.one_of(st.just(body), _images.map(lambda image: body | {"image": image}))
    return st.just(body)


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: Any) -> None:
    """Two of three calls about a job know its id and token; each job sees a few of them.

    No address is longer than aiohttp takes: it refuses others before our code sees them.
    """
    if len(urlencode(case.query or {})) > 8000:
        case.query = {}
    number = next(_calls)
    if "{id}" in case.operation.path and number % 3:
        case.path_parameters["id"], token = _jobs[number // 8 % len(_jobs)]
        case.headers["Authorization"] = f"Bearer {token}"

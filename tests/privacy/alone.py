"""A whole service in a network of its own, where every address there is refuses.

Run as ``unshare --net python -m tests.privacy.alone FOLDER MODEL``. Annotates one image over HTTP
and prints how many connections and datagrams anybody in this network has begun meanwhile, and how
many of these were the client's own; before, how many were seen when two were begun on purpose.
"""

import contextlib
import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import quote

from tests.calls import BOX_REQUEST
from tests.conftest import picture_bytes
from tests.e2e.conftest import Service

_ELSEWHERE = "198.51.100.1"  # RFC 5737: nobody's


def _begun() -> dict[str, int]:
    """TCP connections and UDP datagrams, refused ones included, since this network began."""
    lines = Path("/proc/net/snmp").read_text().splitlines()
    counts: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        protocol, *fields = names.split()
        counts |= {
            protocol + field: int(value)
            for field, value in zip(fields, values.split()[1:], strict=True)
        }
    return {"tcp": counts["Tcp:ActiveOpens"], "udp": counts["Udp:OutDatagrams"]}


def _since(before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in _begun().items()}


def _begin_on_purpose() -> dict[str, int]:
    before = _begun()
    with contextlib.suppress(OSError):
        socket.create_connection((_ELSEWHERE, 443), timeout=2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as question:
        question.sendto(b"who is there", (_ELSEWHERE, 53))
    return _since(before)


def _owlv2(folder: Path) -> dict[str, str]:
    """A tiny one, whose libraries know a hub to ask."""
    from tests import tiny

    tiny.owlv2(folder / "weights" / "owlv2")
    return {
        "MAYFLY_WEIGHTS_DIR": str(folder / "weights"),
        "MAYFLY_MODELS": "owlv2",
        "MAYFLY_DEFAULT_MODEL": "owlv2",
        "HF_HUB_OFFLINE": "0",
    }


def main(folder: Path, model: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # all addresses are this machine's own, and nobody listens there: attempts count, and fail
    subprocess.run(["ip", "route", "add", "local", "default", "dev", "lo"], check=True)
    control = _begin_on_purpose()
    asked, environment = BOX_REQUEST, {}
    if model == "owlv2":
        asked, environment = {"prompts": [{"type": "text", "text": "a dog"}]}, _owlv2(folder)
    before = _begun()
    service = Service(folder, **environment)
    try:
        request = urllib.request.Request(
            f"{service.url}/v1/jobs?request={quote(json.dumps(asked))}",
            picture_bytes((200, 200)),
            {"Content-Type": "image/png", "Prefer": "wait=30"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            outcome = json.load(answer)["outcome"]
    finally:
        service.stop()
    report = {"control": control, "outcome": outcome, "begun": _since(before), "own": 1}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

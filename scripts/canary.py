"""Looks for what must not be anywhere: raw, as base64, hex or escaped text."""

import base64
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

import redis

COMMAND_LOGS = ("slow", "large-request", "large-reply")


class Place(NamedTuple):
    """Somewhere that something could lie: of which kind, its name, and its content."""

    kind: str
    name: str
    content: bytes

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def encodings(secret: bytes) -> set[bytes]:
    """The forms in which `secret` could lie about; base64 in its three alignments."""
    latin = secret.decode("latin-1")
    forms = {
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        repr(secret).encode()[2:-1],
        json.dumps(latin).encode()[1:-1],
        latin.encode(),
        quote_from_bytes(secret).encode(),
    }
    for skip in range(3):
        text = base64.b64encode(secret[skip:])
        end = len(text) // 4 * 4 - 4
        forms |= {text[:end], base64.urlsafe_b64encode(secret[skip:])[:end]}
    return forms


def find(places: Iterable[Place], secrets: dict[str, bytes]) -> list[str]:
    """Findings as "secret in place"."""
    forms = [(name, form) for name, secret in secrets.items() for form in encodings(secret)]
    return sorted(
        {
            f"{name} in {place}"
            for place in places
            for name, form in forms
            if form in place.content or form in place.name.encode(errors="surrogateescape")
        }
    )


def in_redis(client: "redis.Redis") -> Iterator[Place]:
    """Every key with its whole content, and what the slow and command logs hold."""
    server: Any = client
    for key in server.scan_iter(count=1000):
        name = key.decode(errors="surrogateescape")
        yield Place("redis key", name, key + _content(server, key))
    for log in COMMAND_LOGS:
        try:
            entries = server.execute_command("COMMANDLOG", "GET", -1, log)
        except redis.ResponseError:  # Redis, or it is not allowed
            continue
        yield Place("slow log", log, repr(entries).encode())
    try:
        entries = server.execute_command("SLOWLOG GET", -1)
    except redis.ResponseError:
        return
    yield Place("slow log", "slowlog", repr(entries).encode())


def _content(server: Any, key: bytes) -> bytes:
    match server.type(key).decode():
        case "string":
            return server.get(key) or b""
        case "hash":
            return b"".join(name + value for name, value in server.hgetall(key).items())
        case "list":
            return b" ".join(server.lrange(key, 0, -1))
        case "set":
            return b" ".join(server.smembers(key))
        case "zset":
            return b" ".join(server.zrange(key, 0, -1))
        case "stream":
            return repr(server.xrange(key)).encode()
        case _:
            return b""


def in_files(folder: Path, kind: str = "file") -> Iterator[Place]:
    """Every file below a folder; a file itself as well."""
    for path in [folder] if folder.is_file() else folder.rglob("*"):
        if path.is_file():
            yield Place(kind, path.name, path.read_bytes())


def open_files(pid: int) -> Iterator[Place]:
    """Regular files that a process holds open for writing, deleted ones included.

    Raises:
        PermissionError: it is hardened, and we are not root.
    """
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            flags = int(Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().split()[3], 8)
            if entry.is_file() and flags & (os.O_WRONLY | os.O_RDWR):
                yield Place("open file", os.readlink(entry), entry.read_bytes())
        except OSError:
            continue  # closed meanwhile

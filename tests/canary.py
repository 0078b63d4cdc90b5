"""Looks for what must not be anywhere: raw, as base64, hex or escaped text."""

import base64
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import redis


def encodings(secret: bytes) -> list[bytes]:
    """The forms in which `secret` could lie about; base64 in its three alignments."""
    forms = [secret, secret.hex().encode(), repr(secret).encode()[2:-1]]
    for skip in range(3):
        text = base64.b64encode(secret[skip:])
        forms.append(text[: len(text) // 4 * 4 - 4])
        forms.append(base64.urlsafe_b64encode(secret[skip:])[: len(text) // 4 * 4 - 4])
    return forms


def find(places: Iterable[tuple[str, bytes]], secrets: dict[str, bytes]) -> list[str]:
    """Findings as "secret in place"."""
    forms = [(name, form) for name, secret in secrets.items() for form in encodings(secret)]
    return sorted(
        {
            f"{name} in {place}"
            for place, content in places
            for name, form in forms
            if form in content
        }
    )


def in_redis(valkey: "redis.Redis") -> Iterator[tuple[str, bytes]]:
    """Every key with its whole content."""
    client: Any = valkey
    for key in client.scan_iter():
        kind = client.type(key).decode()
        if kind == "string":
            content = client.get(key) or b""
        elif kind == "hash":
            content = b"".join(name + value for name, value in client.hgetall(key).items())
        else:
            content = b" ".join(client.zrange(key, 0, -1))
        yield f"redis key {key.decode()}", key + content


def in_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, its name included."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield f"file {path.name}", path.name.encode() + path.read_bytes()


def open_files(pid: int) -> Iterator[tuple[str, bytes]]:
    """Regular files that a process holds open for writing, deleted ones included."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            flags = int(Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().split()[3], 8)
            if entry.is_file() and flags & (os.O_WRONLY | os.O_RDWR):
                yield f"open file {os.readlink(entry)}", entry.read_bytes()
        except OSError:
            continue  # closed meanwhile

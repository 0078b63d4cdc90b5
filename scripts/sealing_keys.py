"""`mayfly keys worker`: the key pairs that images are sealed with, and how they are exchanged.

Both files hold one key a line, the newest first. Workers open with any of theirs; front doors seal
to the newest that every worker has. So a new pair may be made known in any order.
"""

import os
from pathlib import Path

from jobs.sealing import PrivateKey, key_text
from jobs.settings import SettingsError


def create(private: Path, public: Path) -> None:
    """Make the first pair."""
    key = PrivateKey.new()
    write_private(private, key_text(key.raw).encode(), "jobs sealed to it would be lost")
    public.write_text(key_text(key.public.raw))
    print(f"{private}  private: for the workers, MAYFLY_WORKER_KEY_FILE")
    print(f"{public}  public: for the front doors, MAYFLY_WORKER_PUBLIC_KEY_FILE")


def rotate(private: Path, public: Path) -> None:
    """Put a new pair first; the old ones go on opening what is sealed to them."""
    keys = [PrivateKey.new(), *PrivateKey.load(private)]
    _replace(keys, private, public)
    print(f"new pair: {keys[0].public.id}. Start workers and front doors again, one by one, in any")
    print("order. Once all run, and MAYFLY_IMAGE_TTL_S has passed: mayfly keys worker --retire")


def retire(private: Path, public: Path) -> None:
    """Forget all pairs but the newest. What was ever sealed to the others opens never again."""
    _replace(PrivateKey.load(private)[:1], private, public)
    print("only the newest pair is left. Start workers and front doors again, one by one")


def write_private(path: Path, content: bytes, reason: str) -> None:
    """A new file that its owner alone may read; one that is there is left alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
    except FileExistsError:
        raise SettingsError(
            f"{path} exists and is left alone: {reason}. "
            "Remove it, or name another folder with --out."
        ) from None


def _replace(keys: list[PrivateKey], private: Path, public: Path) -> None:
    """Workers' keys first: a front door must never seal to a key that is nowhere yet."""
    _write_over(private, key_text(*(key.raw for key in keys)))
    _write_over(public, key_text(*(key.public.raw for key in keys)))


def _write_over(path: Path, text: str) -> None:
    """In one step, with the mode and owner of the file that is replaced."""
    was = path.stat()
    new = path.with_name(f".{path.name}.new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, was.st_mode & 0o777), "w") as out:
        os.fchown(out.fileno(), was.st_uid, was.st_gid)
        out.write(text)
        os.fsync(out.fileno())
    new.replace(path)

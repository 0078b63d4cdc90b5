"""All settings, read once from ``MAYFLY_*`` and passed on as one frozen object."""

import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, get_type_hints

MIB = 1024 * 1024


class SettingsError(Exception):
    """A setting is missing or cannot be understood; the text says which and what it takes."""


def _setting(default: Any, doc: str, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"doc": doc, "secret": secret})


@dataclass(frozen=True, repr=False)
class Settings:
    """What an operator can choose. `docs/operations.md` has the same list with more words."""

    redis_url: str = _setting(
        "", "Redis or Valkey: redis://, rediss:// or unix:// URL.", secret=True
    )
    allow_unverified_redis: bool = _setting(
        False, "Take a Redis that does not tell how it is set up; shown in /v1/info."
    )
    allow_swap: bool = _setting(
        False, "Let images be swapped to a disk; shown in /v1/info. For trials."
    )
    host: str = _setting("127.0.0.1", "Address that the front door listens on.")
    port: int = _setting(8080, "Port that the front door listens on; 0 picks a free one.")
    tls_cert: Path | None = _setting(None, "Front door: PEM file with its certificate chain.")
    tls_key: Path | None = _setting(None, "Front door: PEM file with the certificate's key.")
    hsts_s: int = _setting(
        31_536_000, "How long browsers remember to use TLS only; 0 leaves the header out."
    )
    trusted_proxies: tuple[str, ...] = _setting(
        (), "Addresses or networks of proxies whose X-Forwarded-For and -Proto are believed."
    )
    reuse_port: bool = _setting(
        False, "Front door: share its port with others on this machine (SO_REUSEPORT)."
    )
    image_ttl_s: int = _setting(120, "Longest time that an image waits for its annotation.")
    result_ttl_s: int = _setting(300, "Longest time that a result waits to be fetched.")
    lease_s: int = _setting(10, "How long a result stays leased to one Idempotency-Key.")
    lease_grace_s: int = _setting(30, "Longest life of a result after its first leased read.")
    max_image_bytes: int = _setting(20 * MIB, "Largest image, in bytes.")
    max_body_bytes: int = _setting(32 * MIB, "Largest request with all its images, in bytes.")
    max_images: int = _setting(8, "Most images in one request, reference images included.")
    max_pixels: int = _setting(50_000_000, "Largest image, in pixels.")
    max_queue_jobs: int = _setting(10_000, "Most jobs waiting for one model.")
    max_queue_bytes: int = _setting(
        512 * MIB, "Most memory in use by Redis before new jobs are refused."
    )
    upload_timeout_s: float = _setting(
        15.0, "Longest time that a client may take to send its headers, or its body."
    )
    anonymous: str = _setting(
        "loopback", "Who may submit without an API key: off, loopback or limited."
    )
    address_limits: str = _setting(
        "60/minute; 2000/day", "Most jobs of one address where anonymous use is limited."
    )
    key_limits: str = _setting("", "Most jobs of a key that has no limits of its own.")
    data_dir: Path | None = _setting(
        None, "Front door: folder for what it keeps; ~/.local/state/mayfly by default."
    )
    database_url: str = _setting(
        "", "Front door: database of accounts and counts; a SQLite file by default.", secret=True
    )
    worker_key_file: Path | None = _setting(None, "Worker: file with the private sealing key.")
    worker_public_key_file: Path | None = _setting(
        None, "Front door: file with the workers' public sealing key."
    )
    default_model: str = _setting("exemplar", "Model for requests that name none.")
    models: tuple[str, ...] = _setting(("exemplar",), "Worker: models to serve, comma-separated.")
    weights_dir: Path | None = _setting(
        None, "Worker: folder with fetched weights; torch's own cache folder by default."
    )
    checkpoints: tuple[str, ...] = _setting(
        (), "Worker: own weights by model, NAME=PATH, comma-separated; a file or a folder."
    )
    device: str = _setting("auto", "Worker: auto, cpu, cuda, cuda:1 or mps.")
    engine: str = _setting(
        "auto", "Worker: what networks run on: auto, eager, folded, openvino, bf16 or compiled."
    )
    cache_dir: Path | None = _setting(
        None, "Worker: folder for what it found out about engines; ~/.cache/mayfly by default."
    )
    resize: str = _setting(
        "fast", "Worker: how torchvision's models get images, fast or exact (as torchvision does)."
    )
    decode_threads: int = _setting(2, "Worker: threads that decode and prepare images.")
    max_in_flight: int = _setting(16, "Worker: jobs taken from one queue at a time.")
    forward_timeout_s: float = _setting(
        120.0, "Worker: a forward that takes longer means a wedged device; the worker is replaced."
    )
    drain_s: float = _setting(10.0, "How long running jobs and requests may finish at shutdown.")
    log_level: str = _setting("INFO", "DEBUG, INFO, WARNING or ERROR.")
    controller: str = _setting("", "Name and address of who answers for the data.")
    contact: str = _setting("", "Where to write to about them, an e-mail address for example.")
    supervisory_authority: str = _setting("", "The authority to complain to.")
    languages: tuple[str, ...] = _setting(
        ("en", "de", "zh"), "Languages of the privacy notice, the default one first."
    )
    notice_date: str = _setting("", "Day from which the notice is in effect; its own by default.")
    notice_file: Path | None = _setting(None, "A notice of one's own instead of the packaged one.")
    access_log: str = _setting(
        "stderr", "Where a line a request goes: a folder, `stderr` (names nobody there) or `off`."
    )
    access_log_days: int = _setting(89, "Days that the folder's files are kept; at most 89.")
    access_log_ip: str = _setting("full", "Addresses in them: full, truncated or off.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read ``MAYFLY_*``; an empty variable counts as not set.

        Raises:
            SettingsError: for an unknown ``MAYFLY_*`` name or a value of the wrong kind.
        """
        types = get_type_hints(cls)
        known = {variable(f): f for f in fields(cls)}
        values = {}
        for name, text in environ.items():
            if not name.startswith("MAYFLY_"):
                continue
            if name not in known:
                raise SettingsError(f"{name} is not a setting. See docs/operations.md for all.")
            if text != "":
                values[known[name].name] = _convert(name, text, types[known[name].name])
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        positive = (
            "image_ttl_s result_ttl_s lease_s lease_grace_s max_image_bytes max_body_bytes "
            "max_images max_pixels max_queue_jobs max_queue_bytes upload_timeout_s decode_threads "
            "max_in_flight forward_timeout_s"
        )
        for name in positive.split():
            if getattr(self, name) <= 0:
                raise SettingsError(f"MAYFLY_{name.upper()} must be greater than 0.")
        if self.image_ttl_s > 1800 or self.result_ttl_s > 1800:
            raise SettingsError(
                "MAYFLY_IMAGE_TTL_S and MAYFLY_RESULT_TTL_S must be at most 1800: "
                "images and results are held for minutes, not kept."
            )
        if self.anonymous not in ("off", "loopback", "limited"):
            raise SettingsError("MAYFLY_ANONYMOUS takes off, loopback or limited.")
        if self.engine not in ("auto", "eager", "folded", "openvino", "bf16", "compiled"):
            raise SettingsError(
                "MAYFLY_ENGINE takes auto, eager, folded, openvino, bf16 or compiled."
            )
        if self.resize not in ("fast", "exact"):
            raise SettingsError("MAYFLY_RESIZE takes fast or exact.")
        if not self.models:
            raise SettingsError("MAYFLY_MODELS must name at least one model.")
        if not 1 <= self.access_log_days <= 89:
            raise SettingsError(
                "MAYFLY_ACCESS_LOG_DAYS takes 1 to 89: server logs go within three months."
            )
        if self.access_log_ip not in ("full", "truncated", "off"):
            raise SettingsError("MAYFLY_ACCESS_LOG_IP takes full, truncated or off.")
        for text in self.checkpoints:
            if "=" not in text:
                raise SettingsError("MAYFLY_CHECKPOINTS takes NAME=PATH, comma-separated.")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise SettingsError("MAYFLY_TLS_CERT and MAYFLY_TLS_KEY belong together: set both.")
        self.proxy_networks()

    def proxy_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`trusted_proxies`, read.

        Raises:
            SettingsError: one of them is neither an address nor a network.
        """
        return _networks(self.trusted_proxies)

    @property
    def access_log_folder(self) -> Path | None:
        """Where the server log's files lie, if it is kept in files."""
        return None if self.access_log in ("off", "stderr") else Path(self.access_log)

    def data_folder(self) -> Path:
        """Where the front door keeps accounts and counts."""
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return self.data_dir or Path(state, "mayfly")

    def cache_folder(self) -> Path:
        """Where a worker keeps converted networks and which engine is the fastest."""
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return self.cache_dir or Path(os.path.expanduser(cache), "mayfly")

    def checkpoint_paths(self) -> dict[str, Path]:
        """Own weights by model name."""
        return {
            name: Path(path) for name, _, path in (pair.partition("=") for pair in self.checkpoints)
        }

    def shown(self) -> dict[str, str]:
        """Every setting as text, secrets as ``***``."""
        return {
            variable(f): "***"
            if f.metadata["secret"] and getattr(self, f.name)
            else str(getattr(self, f.name))
            for f in fields(self)
        }

    def __repr__(self) -> str:
        return f"Settings({self.shown()})"


def variable(setting: "Field[Any]") -> str:
    """The environment variable of a setting."""
    return f"MAYFLY_{setting.name.upper()}"


def is_loopback(host: str) -> bool:
    """Whether what is sent to `host` stays on this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@cache
def _networks(texts: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError:
        raise SettingsError(
            "MAYFLY_TRUSTED_PROXIES takes addresses and networks, comma-separated, for example "
            "10.0.0.7, 10.1.0.0/16."
        ) from None


def _convert(name: str, text: str, kind: Any) -> Any:
    if kind is str:
        return text
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind == Path | None:
        return Path(text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise SettingsError(f"{name} must be true or false.")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise SettingsError(f"{name} must be a number, for example 30.") from None

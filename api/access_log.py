"""The server log: one line a request, in files of one day, none of them kept longer than promised.

Whom a line is about (address, browser, referring site) stands in these files only: here it can be
read, erased and removed in time. What goes to stderr belongs to whoever collects it, so that
nobody is named there.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
from msgspec import Struct
from yarl import URL

from jobs.process import timestamp
from jobs.settings import Settings, SettingsError

log = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_FILE = re.compile(r"access-(\d{4}-\d\d-\d\d)\.jsonl")
_DAY_S = 86_400
_LIKE_A_TOKEN = re.compile(r"[\w-]{32,}", re.ASCII)  # no browser's name is that long


class Visit(Struct, frozen=True, omit_defaults=True):
    """What is kept of a request: what the privacy notice names, and the id of its job."""

    time: str
    ip: str | None
    method: str
    route: str
    status: int
    bytes_in: int
    bytes_out: int
    browser: str | None
    referrer: str | None
    job: str | None = None


_visit = msgspec.json.Decoder(Visit)


class AccessLog:
    """Writes visits where the settings say; reads and erases those in files.

    Any number of front doors of one host may share a folder: each line is appended by one write,
    and erasing blanks lines where they stand. Reading takes as long as the files are large, so
    `lines_of` and `erase` work on a thread.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._folder = settings.access_log_folder
        self._to_stderr = settings.access_log == "stderr"
        self._days = settings.access_log_days
        self._clock = clock
        self._day = ""
        self._file = -1
        self._told = False

    def open(self) -> None:
        """Make the folder and remove what is too old in it.

        Raises:
            SettingsError: nothing can be written there.
        """
        if self._folder is None:
            return
        try:
            self._turn_to(timestamp(self._clock())[:10])
        except OSError as error:
            raise SettingsError(
                f"MAYFLY_ACCESS_LOG: cannot write into {self._folder} ({error.strerror}). "
                "Name another folder, or `stderr`, or `off`."
            ) from None

    async def serve(self) -> None:
        """Remove files in time, whether there are requests or not, until cancelled."""
        while self._folder is not None:
            await asyncio.sleep(min(3600, _DAY_S - self._clock() % _DAY_S))
            try:
                self.sweep()
            except OSError as error:
                log.error("old access log cannot be removed", exc_info=error)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self._day = -1, ""

    def write(self, visit: Visit) -> None:
        """Add a line. A full disk costs the line, never the request."""
        if self._to_stderr:
            fields = msgspec.to_builtins(visit)
            named = ("time", "ip", "browser", "referrer")
            shown = {name: value for name, value in fields.items() if name not in named}
            log.info("request", extra={"fields": shown})
        if self._folder is None:
            return
        try:
            if visit.time[:10] != self._day:
                self._turn_to(visit.time[:10])
            os.write(self._file, msgspec.json.encode(visit) + b"\n")
            self._told = False
        except OSError as error:
            if not self._told:
                log.error("access log cannot be written", exc_info=error)
            self._told = True

    def sweep(self) -> None:
        """Remove the files whose first line could get too old before the day is over."""
        today = date.fromisoformat(timestamp(self._clock())[:10])
        oldest = (today - timedelta(days=self._days - 1)).isoformat()
        for day, path in self._files():
            if day < oldest:
                path.unlink(missing_ok=True)

    async def lines_of(self, address: str) -> list[Visit]:
        """The lines of an address; none where addresses are truncated, as they name nobody."""
        return await asyncio.to_thread(self._lines_of, address)

    async def erase(self, address: str) -> int:
        """Blank the lines of an address in all files; returns how many.

        The line of a request is written after its handler: one that erases sets
        `api.keys.ANONYMOUS`, or it leaves a line itself.
        """
        return await asyncio.to_thread(self._erase, address)

    def _turn_to(self, day: str) -> None:
        assert self._folder is not None  # noqa: S101 - for the type checker; callers look first
        self.close()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.sweep()
        path = self._folder / f"access-{day}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._day = day

    def _files(self) -> list[tuple[str, Path]]:
        return _files(self._folder) if self._folder and self._folder.is_dir() else []

    def _lines_of(self, address: str) -> list[Visit]:
        mark = _mark(address)
        return [visit for _, path in self._files() for _, visit in _read(path, mark)]

    def _erase(self, address: str) -> int:
        mark, erased = _mark(address), 0
        for _, path in self._files():
            with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
                position = 0
                for line in file:
                    if mark in line:  # blank lines are JSON lines too
                        os.pwrite(file.fileno(), b" " * (len(line) - 1), position)
                        erased += 1
                    position += len(line)
        return erased


def export(folder: Path, network: str = "", since: str = "") -> Iterator[bytes]:
    """Lines for the authorities, oldest first, each with its line end.

    Args:
        network: an address or network in CIDR form; empty for all. A truncated address is meant
            if it overlaps.
        since: ISO 8601 date or time, UTC unless it says otherwise; empty for all.

    Raises:
        ValueError: one of them is neither.
    """
    wanted: Network | None = ipaddress.ip_network(network, strict=False) if network else None
    start = ""
    if since:
        moment = datetime.fromisoformat(since)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        start = timestamp(moment.timestamp())
    for day, path in _files(folder):
        if day < start[:10]:
            continue
        for line, visit in _read(path):
            if visit.time >= start and _overlap(visit.ip, wanted):
                yield line


def shown_address(address: str | None, mode: str) -> str | None:
    """An address as lines have it: ``full``, ``truncated`` (IPv4 /24, IPv6 /48) or ``off``."""
    try:
        ip = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:  # a unix socket has none
        return None
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if mode == "truncated":
        return str(ipaddress.ip_network((ip, 24 if ip.version == 4 else 48), strict=False))
    return str(ip) if mode == "full" else None


def shown_browser(header: str | None) -> str | None:
    """What the client calls itself, cut; what could be a token is not kept."""
    return _LIKE_A_TOKEN.sub("…", header[:256]) if header else None


def shown_referrer(header: str | None) -> str | None:
    """The site a visitor came from. Its paths and queries can name files, searches and people."""
    try:
        origin = str(URL(header or "").origin())
    except ValueError:
        return None
    return origin if origin.startswith(("https://", "http://")) and len(origin) < 256 else None


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Days with their files, oldest first; nothing else that lies in the folder."""
    names = ((_FILE.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((name[1], path) for name, path in names if name)


def _read(path: Path, mark: bytes = b"") -> Iterator[tuple[bytes, Visit]]:
    """The lines of a file that contain `mark`; not what was erased or is being written."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if mark in line:
                with contextlib.suppress(msgspec.DecodeError):
                    yield line, _visit.decode(line)


def _mark(address: str) -> bytes:
    """What only the lines of this address contain: a quote inside of a text is escaped."""
    return b'"ip":' + msgspec.json.encode(shown_address(address, "full") or "-")


def _overlap(ip: str | None, wanted: Network | None) -> bool:
    return wanted is None or (ip is not None and ipaddress.ip_network(ip).overlaps(wanted))

"""The privacy notice: one source in every language, with the figures of the running service.

Its version is a digest of all that it says, so that no change, one of a period or of the
controller included, goes without a new version.
"""

import hashlib
import html
from collections.abc import Mapping
from datetime import date
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import msgspec
from msgspec import Struct

from jobs.settings import Settings, SettingsError

COOKIE_DAYS = 180

_PAGES = files("api").joinpath("pages")

Words = dict[str, str]  # by language


class _Section(Struct, forbid_unknown_fields=True):
    id: str
    title: Words
    text: list[dict[str, str | bool]]


class _Source(Struct, forbid_unknown_fields=True):
    """As it stands in the TOML file."""

    effective: date
    short: Words
    sections: list[_Section]
    words: dict[str, Words]


class Section(Struct, frozen=True):
    """A heading and what is under it: paragraphs, and lists of points."""

    id: str
    title: str
    text: list[str | list[str]]


class Retention(Struct, frozen=True):
    """How long what is kept at most. `server_log_days` is null where lines name nobody."""

    image_s: int
    result_s: int
    server_log_days: int | None
    cookie_days: int


class Notice(Struct, frozen=True):
    """The notice in one language. `short` is for the place where data is collected."""

    version: str
    effective: date
    language: str
    languages: list[str]
    title: str
    controller: str
    contact: str
    supervisory_authority: str
    retention: Retention
    short: str
    sections: list[Section]


class Notices:
    """The notice in the languages that the settings name.

    Raises:
        SettingsError: the source does not have a language, or an own one cannot be understood.
    """

    def __init__(self, settings: Settings) -> None:
        source = _read(settings.notice_file)
        self.words = {
            language: {name: _in(language, words) for name, words in source.words.items()}
            for language in settings.languages
        }
        self.retention = Retention(
            settings.image_ttl_s,
            settings.result_ttl_s,
            settings.access_log_days if settings.access_log_folder else None,
            COOKIE_DAYS,
        )
        written = {
            language: self._write(source, settings, language) for language in settings.languages
        }
        digest = hashlib.sha256(msgspec.json.encode(list(written.values()))).hexdigest()
        self.version = digest[:8]
        self.by_language = {
            language: msgspec.structs.replace(notice, version=self.version)
            for language, notice in written.items()
        }

    def language(self, *wanted: str) -> str:
        """The first of these that there is, else the first of the settings."""
        return next((name for name in wanted if name in self.by_language), next(iter(self.words)))

    def page(self, language: str) -> bytes:
        """The notice for people, as HTML that is readable without scripts."""
        notice = self.by_language[language]
        values = {name: html.escape(word) for name, word in self.words[language].items()}
        values |= {
            "language": language,
            "languages": " ".join(map(self._link, notice.languages)),
            "number": notice.version,
            "date": notice.effective.isoformat(),
            "short": html.escape(notice.short),
            "sections": "\n".join(map(_section_html, notice.sections)),
        }
        return Template(_PAGES.joinpath("privacy.html").read_text()).substitute(values).encode()

    def _link(self, language: str) -> str:
        code, name = html.escape(language), html.escape(self.words[language]["language"])
        return f'<a href="/privacy?lang={code}" lang="{code}" hreflang="{code}">{name}</a>'

    def _write(self, source: _Source, settings: Settings, language: str) -> Notice:
        facts, figures = _facts(settings), self._figures(settings, language)

        def fill(words: Mapping[str, Any]) -> str:
            try:
                return _in(language, words).format_map(figures)
            except (LookupError, ValueError):
                raise SettingsError(
                    "MAYFLY_NOTICE_FILE: in braces there may stand " + ", ".join(figures) + "."
                ) from None

        sections = []
        for section in source.sections:
            text: list[str | list[str]] = []
            for paragraph in section.text:
                if not set(_conditions(paragraph)) <= facts:
                    continue
                if not paragraph.get("item"):
                    text.append(fill(paragraph))
                elif text and isinstance(text[-1], list):
                    text[-1].append(fill(paragraph))
                else:
                    text.append([fill(paragraph)])
            sections.append(Section(section.id, _in(language, section.title), text))
        return Notice(
            version="",
            effective=_date(settings.notice_date) or source.effective,
            language=language,
            languages=list(settings.languages),
            title=self.words[language]["title"],
            controller=settings.controller,
            contact=settings.contact,
            supervisory_authority=settings.supervisory_authority,
            retention=self.retention,
            short=fill(source.short),
            sections=sections,
        )

    def _figures(self, settings: Settings, language: str) -> dict[str, str]:
        return {
            "image_ttl": self._duration(settings.image_ttl_s, language),
            "result_ttl": self._duration(settings.result_ttl_s, language),
            "log_days": str(settings.access_log_days),
            "cookie_days": str(COOKIE_DAYS),
            "controller": settings.controller,
            "contact": settings.contact,
            "authority": settings.supervisory_authority,
        }

    def _duration(self, seconds: int, language: str) -> str:
        number, unit = (seconds, "second") if seconds % 60 else (seconds // 60, "minute")
        return f"{number} {self.words[language][unit if number == 1 else unit + 's']}"


def _section_html(section: Section) -> str:
    lines = [f'<section id="{html.escape(section.id)}">', f"<h2>{html.escape(section.title)}</h2>"]
    for text in section.text:
        if isinstance(text, str):
            lines.append(f"<p>{html.escape(text)}</p>")
        else:
            points = "".join(f"<li>{html.escape(point)}</li>" for point in text)
            lines.append(f"<ul>{points}</ul>")
    return "\n".join([*lines, "</section>"])


def _read(own: Path | None) -> _Source:
    try:
        text = own.read_bytes() if own else _PAGES.joinpath("notice.toml").read_bytes()
        return msgspec.toml.decode(text, type=_Source)
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(
            f"MAYFLY_NOTICE_FILE cannot be understood: {error}. "
            "It must have the form of api/pages/notice.toml."
        ) from None


def _in(language: str, words: Mapping[str, Any]) -> str:
    if language not in words:
        raise SettingsError(
            f"MAYFLY_LANGUAGES: the privacy notice does not say everything in `{language}`. "
            "MAYFLY_NOTICE_FILE can name one that does."
        )
    return str(words[language])


def _conditions(paragraph: Mapping[str, Any]) -> list[str]:
    return [fact.strip() for fact in str(paragraph.get("when", "")).split(",") if fact.strip()]


def _facts(settings: Settings) -> set[str]:
    """What holds in this configuration, in the words that `when` uses."""
    logs = {"off": "no logs", "stderr": "logs name nobody"}
    return {
        "controller" if settings.controller else "no controller",
        "contact" if settings.contact else "no contact",
        "authority" if settings.supervisory_authority else "no authority",
        logs.get(settings.access_log, "logs in files"),
        f"{settings.access_log_ip} addresses",
    }


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise SettingsError("MAYFLY_NOTICE_DATE takes a date such as 2026-01-31.") from None

"""The privacy notice: true of the running configuration, whole in every language, versioned."""

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from api.notice import Notice, Notices
from jobs.settings import Settings, SettingsError

SOURCE = Path(__file__).parents[2] / "api" / "pages" / "notice.toml"
LANGUAGES = ("en", "de", "zh")
NAMED = Settings(
    controller="Example Ltd, 1 Example Street",
    contact="privacy@example.org",
    supervisory_authority="Example Authority",
    access_log="/var/log/mayfly",
    image_ttl_s=90,
    result_ttl_s=60,
    access_log_days=30,
)


def _text(notice: Notice, section: str = "") -> str:
    chosen = [one.text for one in notice.sections if section in ("", one.id)]
    return notice.short + str(chosen)


def _words(source: Any) -> list[dict[str, Any]]:
    """Everything in the source that is said in several languages."""
    found = [source["short"], *source["words"].values()]
    for section in source["sections"]:
        found += [section["title"], *section["text"]]
    return found


def test_a_changed_text_gets_a_new_date() -> None:
    """Set `effective` to the day from which the change is in effect, then this digest."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    effective = tomllib.loads(SOURCE.read_text())["effective"].isoformat()
    assert (effective, digest) == ("2026-11-24", "ac0d42f7e6612072")


def test_every_sentence_is_there_in_every_language_with_the_same_figures() -> None:
    for words in _words(tomllib.loads(SOURCE.read_text())):
        figures = {name: set(re.findall(r"\{\w+\}", words[name])) for name in LANGUAGES}
        assert len(set(map(frozenset, figures.values()))) == 1, words["en"]
        assert all(words[name].strip() for name in LANGUAGES)


def test_every_condition_is_one_that_can_hold() -> None:
    """A misspelt `when` would hide its paragraph for ever."""
    paragraphs = [
        text for one in tomllib.loads(SOURCE.read_text())["sections"] for text in one["text"]
    ]
    shown: set[str] = set()
    for where in ("off", "stderr", "/logs"):
        for ip in ("full", "truncated", "off"):
            for name in ("", "somebody"):
                settings = Settings(
                    access_log=where,
                    access_log_ip=ip,
                    controller=name,
                    contact=name,
                    supervisory_authority=name,
                )
                shown.add(_text(Notices(settings).by_language["en"]))
    for paragraph in paragraphs:
        begin = paragraph["en"].partition("{")[0]
        assert any(begin in text for text in shown), paragraph["en"]


@pytest.mark.parametrize(
    ("language", "image", "result", "days"),
    [
        ("en", "90 seconds", "1 minute at most", "30 days"),
        ("de", "90 Sekunden", "1 Minute", "30 Tagen"),
        ("zh", "90 秒", "1 分钟", "30 天"),
    ],
)
def test_the_figures_are_those_of_the_service(
    language: str, image: str, result: str, days: str
) -> None:
    notice = Notices(NAMED).by_language[language]
    assert image in notice.short
    assert result in notice.short
    assert days in _text(notice, "logs")
    assert "Example Ltd" in _text(notice, "controller")
    assert "privacy@example.org" in _text(notice, "controller")
    assert "Example Authority" in _text(notice, "rights")
    assert (notice.retention.image_s, notice.retention.server_log_days) == (90, 30)
    assert "{" not in _text(notice)


@pytest.mark.parametrize(
    ("where", "ip", "said", "unsaid"),
    [
        ("/logs", "full", "the IP address it came from'", "truncated"),
        ("/logs", "truncated", "truncated so that", "the IP address it came from'"),
        ("/logs", "off", "date and time", "IP address"),
        ("stderr", "full", "are not noted", "IP address"),
        ("off", "full", "keeps no record", "IP address"),
    ],
)
def test_it_says_what_is_logged_here(where: str, ip: str, said: str, unsaid: str) -> None:
    notice = Notices(Settings(access_log=where, access_log_ip=ip)).by_language["en"]
    text = _text(notice, "logs")
    assert said in text
    assert unsaid not in text
    assert (notice.retention.server_log_days is None) == (where != "/logs")


def test_a_service_without_a_controller_says_so() -> None:
    notice = Notices(Settings()).by_language["en"]
    assert "have not entered their name" in _text(notice, "controller")


@pytest.mark.parametrize(
    "change",
    [
        {"image_ttl_s": 91},
        {"access_log_days": 31},
        {"access_log_ip": "truncated"},
        {"access_log": "off"},
        {"controller": "Somebody else"},
        {"supervisory_authority": "Another Authority"},
        {"notice_date": "2027-01-31"},
    ],
)
def test_whatever_changes_in_it_makes_a_new_version(change: dict[str, Any]) -> None:
    changed = Settings(**{**{name: getattr(NAMED, name) for name in vars(NAMED)}, **change})
    assert Notices(changed).version != Notices(NAMED).version
    assert Notices(NAMED).version == Notices(NAMED).version


def test_all_languages_have_the_same_version_and_date() -> None:
    notices = Notices(Settings(notice_date="2027-01-31")).by_language.values()
    assert {notice.version for notice in notices} == {next(iter(notices)).version}
    assert {notice.effective.isoformat() for notice in notices} == {"2027-01-31"}


def test_the_page_holds_every_sentence_and_no_markup_of_settings() -> None:
    notices = Notices(Settings(controller="<script>Example & Co</script>"))
    for language, notice in notices.by_language.items():
        page = notices.page(language).decode()
        assert f'<html lang="{language}">' in page
        assert "<script>" not in page
        assert "${" not in page
        ids = re.findall(r' id="([^"]+)"', page)
        assert len(ids) == len(set(ids)), "or the scripts would find another element"
        assert "&lt;script&gt;Example &amp; Co" in page
        assert page.count("<section") == len(notice.sections) + 1  # and what one can do
        assert f"{notice.version} ·" in page


def test_an_own_notice_can_have_other_languages(tmp_path: Path) -> None:
    own = tmp_path / "notice.toml"
    own.write_text(re.sub(r"\bzh = ", "fr = ", SOURCE.read_text()))
    notices = Notices(Settings(notice_file=own, languages=("fr", "en")))
    assert list(notices.by_language) == ["fr", "en"]
    assert notices.language("zh", "de") == "fr"
    assert notices.language("xx", "en") == "en"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"languages": ("en", "fr")}, "does not say everything in `fr`"),
        ({"notice_date": "soon"}, "MAYFLY_NOTICE_DATE takes a date"),
        ({"notice_file": Path("/nowhere")}, "MAYFLY_NOTICE_FILE cannot be understood"),
    ],
)
def test_what_cannot_be_shown_is_refused_at_the_start(more: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        Notices(Settings(**more))


@pytest.mark.parametrize("text", ["effective = 1", "sections = [", "{unknown}"])
def test_a_broken_own_notice_is_refused_at_the_start(tmp_path: Path, text: str) -> None:
    own = tmp_path / "notice.toml"
    own.write_text(SOURCE.read_text().replace("{image_ttl}", text) if "{" in text else text)
    with pytest.raises(SettingsError, match="MAYFLY_NOTICE_FILE"):
        Notices(Settings(notice_file=own))

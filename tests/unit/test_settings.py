"""Settings: read once, checked, documented, and silent about secrets."""

from dataclasses import fields
from pathlib import Path

import pytest

from jobs.settings import Settings, SettingsError, variable

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_defaults_need_no_environment() -> None:
    assert Settings.from_env({}) == Settings()
    assert Settings.from_env({"MAYFLY_PORT": "", "PATH": "/bin"}) == Settings()


def test_values_are_converted() -> None:
    settings = Settings.from_env(
        {
            "MAYFLY_PORT": "9000",
            "MAYFLY_MODELS": "exemplar, ssd300_vgg16",
            "MAYFLY_CHECKPOINTS": "ssd300_vgg16=/models/own.pth",
            "MAYFLY_UPLOAD_TIMEOUT_S": "2.5",
            "MAYFLY_WORKER_KEY_FILE": "/run/key",
        }
    )
    assert settings.port == 9000
    assert settings.models == ("exemplar", "ssd300_vgg16")
    assert settings.checkpoint_paths() == {"ssd300_vgg16": Path("/models/own.pth")}
    assert settings.upload_timeout_s == 2.5
    assert settings.worker_key_file == Path("/run/key")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAYFLY_PROT", "9000"),
        ("MAYFLY_PORT", "many"),
        ("MAYFLY_IMAGE_TTL_S", "0"),
        ("MAYFLY_IMAGE_TTL_S", "86400"),
        ("MAYFLY_MODELS", " , "),
        ("MAYFLY_CHECKPOINTS", "/models/own.pth"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match="MAYFLY_"):
        Settings.from_env({name: value})


def test_secrets_do_not_show() -> None:
    settings = Settings(redis_url="redis://:hunter2@host")
    assert "hunter2" not in repr(settings) + str(settings.shown())
    assert settings.shown()["MAYFLY_REDIS_URL"] == "***"


def test_every_setting_is_documented_with_its_default() -> None:
    """And nothing is documented that is not there."""
    rows = [line.split("|") for line in DOCS.read_text().splitlines() if "| `MAYFLY_" in line]
    documented = {row[1].strip(" `"): row[2].strip(" `") for row in rows}
    shown = Settings().shown()
    assert documented.keys() == {variable(setting) for setting in fields(Settings)}
    for name, default in documented.items():
        expected = {"None": "", "()": ""}.get(shown[name], shown[name])
        assert default == expected.strip("(),'").replace("', '", ","), name

"""compose.yaml and Dockerfile keep the promises without an engine to ask: what they say is read."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from jobs.settings import Settings, SettingsError
from jobs.store import connection_pool
from scripts import cli, valkey

ROOT = Path(__file__).parents[2]
SERVICES = ("valkey", "api", "worker")
ROLES = ("api", "worker")


def _without_variables(text: str) -> str:
    """What compose makes of ``${NAME:-default}`` when no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


COMPOSE: dict[str, Any] = yaml.safe_load(_without_variables((ROOT / "compose.yaml").read_text()))


def _bytes(size: str) -> int:
    units = {"k": 2**10, "m": 2**20, "g": 2**30}
    number, unit = re.fullmatch(r"(\d+)([kmg])b?", size).groups()  # type: ignore[union-attr]
    return int(number) * units[unit]


def _options() -> Iterator[tuple[str, str]]:
    """Valkey's command line."""
    words = COMPOSE["services"]["valkey"]["command"][1:]
    return zip(words[::2], words[1::2], strict=True)


def _stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """The Dockerfile's stages by name: what each starts from, and its instructions."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for line in text.replace("\\\n", "").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            stages[name] = (parent, [])
        elif word and name:
            stages[name][1].append((word, rest))
    return stages


def _everything_in(stage: str) -> list[tuple[str, str]]:
    """A stage's instructions after those of all stages that it starts from or copies from."""
    stages = _stages()
    if stage not in stages:
        return []
    parent, own = stages[stage]
    sources = [m[1] for word, rest in own if (m := re.match(r"--from=(\S+)", rest))]
    return [i for source in (parent, *sources) for i in _everything_in(source)] + own


def test_compose_has_exactly_the_services_that_are_tested() -> None:
    assert tuple(COMPOSE["services"]) == SERVICES


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_do_little(name: str) -> None:
    service = COMPOSE["services"][name]
    user, group = service["user"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ulimits"]["core"] == 0
    assert service["pids_limit"] > 0
    forbidden = {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode"}
    assert not forbidden & service.keys()
    assert service.get("network_mode", "none") == "none"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_cannot_swap_and_its_log_is_bounded(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["memswap_limit"] == service["mem_limit"], "the rest above memory would be swap"
    assert service["logging"]["driver"] == "local"
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_mounted_that_a_service_could_write_to_a_disk_through(name: str) -> None:
    """But for the front door's folder of accounts and counts."""
    service = COMPOSE["services"][name]
    for mount in service.get("volumes", []):
        in_ram = mount["type"] == "tmpfs" or (mount["type"], mount["source"]) == (
            "volume",
            "socket",
        )
        kept = name == "api" and mount["target"] == service["environment"]["MAYFLY_DATA_DIR"]
        assert in_ram or kept or mount["read_only"] is True
    assert COMPOSE["volumes"].keys() == {"socket"}
    assert COMPOSE["volumes"]["socket"]["driver_opts"]["type"] == "tmpfs"


def test_only_the_front_door_has_a_network_and_is_reached_only_from_this_host() -> None:
    services = COMPOSE["services"]
    assert [name for name in SERVICES if services[name].get("network_mode") != "none"] == ["api"]
    assert [name for name in SERVICES if "ports" in services[name]] == ["api"]
    assert services["api"]["ports"] == ["127.0.0.1:8080:8080"]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_speaks_to_others_over_tls_or_a_socket_of_this_host(role: str) -> None:
    settings = Settings.from_env(COMPOSE["services"][role]["environment"])
    socket = dict(_options())["--unixsocket"]
    assert settings.redis_url == f"unix://{socket}"
    assert connection_pool(settings)
    folder = str(Path(socket).parent)
    for name in ("valkey", role):
        mounts = COMPOSE["services"][name]["volumes"]
        assert [m["source"] for m in mounts if m["target"] == folder] == ["socket"]
    if role == "api":
        assert settings.host == "0.0.0.0"
        assert settings.tls_cert
        assert settings.tls_key


def test_valkey_runs_with_the_options_of_the_private_one() -> None:
    service, options = COMPOSE["services"]["valkey"], dict(_options())
    assert service["command"][0] == "valkey-server"
    assert options["--port"] == "0"
    differ = {"--port", "--unixsocket", "--unixsocketperm", "--maxmemory"}
    ours = {f"--{name}": value for name, value in valkey.OPTIONS.items()}
    assert {k: v for k, v in options.items() if k not in differ} == {
        k: v for k, v in ours.items() if k not in differ
    }
    assert _bytes(options["--maxmemory"]) * 1.25 <= _bytes(service["mem_limit"]), "room beside data"
    assert ("tmpfs", "/data") in [(m["type"], m["target"]) for m in service["volumes"]], (
        "the image declares a volume there"
    )


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_given_settings_that_exist(role: str) -> None:
    environment = COMPOSE["services"][role]["environment"]
    assert all(name.startswith("MAYFLY_") for name in environment)
    Settings.from_env(environment)
    with pytest.raises(SettingsError):
        Settings.from_env({**environment, "MAYFLY_HOSTS": "0.0.0.0"})


def test_each_role_gets_its_half_of_the_key_pair_and_no_more() -> None:
    services = COMPOSE["services"]
    assert "secrets" not in services["valkey"]
    for role, secret, setting, file in (
        ("api", "worker_public_key", "MAYFLY_WORKER_PUBLIC_KEY_FILE", "secrets/worker.pub"),
        ("worker", "worker_key", "MAYFLY_WORKER_KEY_FILE", "secrets/worker.key"),
    ):
        assert services[role]["secrets"] == [secret]
        assert services[role]["environment"][setting] == f"/run/secrets/{secret}"
        assert COMPOSE["secrets"][secret] == {"file": file}


def test_keys_stand_where_compose_looks_for_them_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands in compose.yaml's first comment make the files that it names, 0600 and all."""
    commands = re.findall(r"^#\s+mayfly (keys .*?)\s+#", (ROOT / "compose.yaml").read_text(), re.M)
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert cli.main(command.split()) == 0
    for secret in COMPOSE["secrets"].values():
        assert (tmp_path / secret["file"]).is_file()
    api = COMPOSE["services"]["api"]
    (tls,) = [m for m in api["volumes"] if m["target"] == "/tls"]
    for name in ("MAYFLY_TLS_CERT", "MAYFLY_TLS_KEY"):
        file = Path(api["environment"][name]).relative_to(tls["target"])
        assert (tmp_path / tls["source"] / file).is_file()
    for private in ("secrets/worker.key", "tls/key.pem"):
        assert (tmp_path / private).stat().st_mode & 0o777 == 0o600
    assert {"secrets/", "tls/"} <= set((ROOT / ".gitignore").read_text().splitlines())


@pytest.mark.parametrize("role", ROLES)
def test_a_role_runs_a_command_that_there_is(role: str) -> None:
    service = COMPOSE["services"][role]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    program, *arguments = service["command"]
    assert project["scripts"][program] == "scripts.cli:main"
    assert cli._parser().parse_args(arguments).run is getattr(cli, f"_{role}")
    assert service["build"]["target"] == role
    assert _stages()[role][1][-1] == ("CMD", json.dumps(service["command"])), "exec form, the same"


@pytest.mark.parametrize("role", ROLES)
def test_there_is_time_to_drain_before_a_role_is_killed(role: str) -> None:
    grace = COMPOSE["services"][role]["stop_grace_period"]
    assert int(grace.removesuffix("s")) >= Settings().drain_s + 5


@pytest.mark.parametrize("role", ROLES)
def test_an_image_runs_as_a_user_that_is_not_root(role: str) -> None:
    users = [rest for word, rest in _stages()[role][1] if word == "USER"]
    assert users == ["1000:1000"]


def test_the_front_doors_image_has_neither_torch_nor_an_image_library() -> None:
    """Of the extras, the stages that it is made from install the driver for PostgreSQL alone."""

    def installs(role: str) -> str:
        return "\n".join(rest for word, rest in _everything_in(role) if word == "RUN")

    assert "pip install" in installs("api")
    extras = re.findall(r"optional-dependencies'\]\['(\w+)'\]", installs("api"))
    assert extras == ["postgresql"]
    assert "['worker']" in installs("worker"), "else this test would see nothing"
    assert not re.search(r"torch|pillow|mayfly\[|\.\[", installs("api"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"], *project["optional-dependencies"]["postgresql"]]
    assert not re.search("torch|pillow", " ".join(needs), re.IGNORECASE)


@pytest.mark.parametrize("role", ROLES)
def test_an_image_is_built_from_the_tested_versions(role: str) -> None:
    fetching = [
        command
        for word, rest in _everything_in(role)
        if word == "RUN"
        for command in re.findall("pip install[^&]*", rest)
        if "--no-deps" not in command
    ]
    assert fetching
    assert all("--constraint constraints.txt" in command for command in fetching)


def test_the_front_door_is_asked_for_its_health_in_one_way() -> None:
    check = next(rest for word, rest in _stages()["api"][1] if word == "HEALTHCHECK")
    _, command = check.split("CMD ", 1)
    assert ["CMD", *json.loads(command)] == COMPOSE["services"]["api"]["healthcheck"]["test"]


def test_a_build_sees_only_what_an_image_is_made_of() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    wanted = {rule.removeprefix("!").rstrip("/") for rule in rules if rule.startswith("!")}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name.split(".")[0] for name in packages["packages"]}
    assert wanted == folders | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}


def test_compose_follows_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run(
        [*command, str(ROOT / "compose.yaml")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr

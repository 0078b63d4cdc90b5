"""What is imported is declared, and what is declared can be had: a fresh machine has no more."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PEERS = {"bentoml", "fastapi", "litserve", "mosec"}  # in environments that the bench makes for them
OURS = {"api", "jobs", "scripts", "tests", "worker"}


def _imported() -> Iterator[str]:
    """Top-level names of all modules that any file of ours imports, wherever in the file."""
    for folder in sorted(OURS):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield node.module.partition(".")[0]


def _name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!;~]", requirement)[0].lower().replace("_", "-")


def _declared() -> set[str]:
    extras = PROJECT["optional-dependencies"].values()
    return {_name(r) for group in [PROJECT["dependencies"], *extras] for r in group}


def test_every_import_is_declared() -> None:
    found = packages_distributions()
    missing = {
        module
        for module in _imported()
        if module not in sys.stdlib_module_names | OURS | PEERS
        and not {_name(name) for name in found.get(module, [])} & _declared()
    }
    assert missing == set()


def test_every_extra_that_is_named_exists() -> None:
    """pip only warns of one that does not."""
    extras = PROJECT["optional-dependencies"]
    for group in extras.values():
        for requirement in group:
            for names in re.findall(r"^mayfly\[(.*)\]", requirement):
                assert set(names.split(",")) <= extras.keys()

"""docs/privacy.md names code and tests: they must be there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "privacy.md").read_text()
PATHS = re.findall(r"`((?:api|jobs|worker|scripts|tests)/[\w/.]+)(?:::(\w+))?(?:: ([\w.]+))?", TEXT)


def test_every_file_test_and_name_exists() -> None:
    assert len(PATHS) > 20
    for path, test, name in PATHS:
        assert (ROOT / path).is_file(), path
        code = (ROOT / path).read_text()
        for wanted in [test, *name.split(".")]:
            assert re.search(rf"\b{wanted}\b", code), f"{path} has no {wanted}"
        if test:
            assert re.search(rf"^(async )?def {test}\(", code, re.MULTILINE), f"{path}::{test}"


def test_every_promise_names_code_and_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "---" not in line]
    promises = [row.strip("| ").split(" | ") for row in rows if "the policy says" not in row]
    assert len(promises) > 15
    for promise in promises:
        assert len(promise) == 3, promise
        assert "tests/" in promise[2] or promise[2].startswith("the same"), promise[0]

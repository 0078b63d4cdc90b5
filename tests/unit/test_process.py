"""What processes say, and what they must not."""

import logging
import subprocess
import sys

import msgspec

from jobs.process import JsonLines


def _format(name: str, message: str, *arguments: object, error: BaseException | None = None) -> str:
    info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord(name, logging.ERROR, __file__, 1, message, arguments, info)
    return JsonLines().format(record)


def test_a_line_is_one_json_object() -> None:
    line = msgspec.json.decode(_format("api.middleware", "request"))
    assert (line["event"], line["level"]) == ("request", "ERROR")


def test_other_libraries_arguments_are_not_logged() -> None:
    line = _format("aiohttp.server", "Error handling %s", "/v1/jobs?request=secret-prompt")
    assert "secret-prompt" not in line
    assert "Error handling" in line


def test_an_exception_is_logged_without_its_message() -> None:
    try:
        raise ValueError("secret-content")
    except ValueError as error:
        line = _format("worker.pipeline", "job failed", error=error)
    assert "secret-content" not in line
    assert "ValueError" in line
    assert "test_an_exception_is_logged" in line


def test_the_front_door_is_light() -> None:
    """It runs where torch is not installed."""
    code = "import sys, api.main; print([m for m in ('torch', 'PIL', 'numpy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_hardened_process_cannot_be_dumped() -> None:
    code = (
        "import ctypes, resource; from jobs.process import harden; harden();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0 (0, 0)"

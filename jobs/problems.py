"""One exception for everything that a caller can be told, rendered as RFC 9457 problem+json.

A problem carries its HTTP status, a stable machine-readable code and a sentence that says what to
do. The sentence is written for the caller who sent the input; it is never logged.
"""

from collections.abc import Mapping
from typing import Any


class Problem(Exception):
    """An answer that is not a success.

    Args:
        status: HTTP status, 400..599.
        code: stable snake_case name that programs can match on.
        detail: what is wrong and what to do about it, in one or two sentences.
        headers: HTTP headers that belong to the answer, such as ``Retry-After``.
    """

    def __init__(
        self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(code)  # the detail may quote input, so str(exc) must stay loggable
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})

    def document(self) -> dict[str, Any]:
        """The body of an ``application/problem+json`` answer."""
        return {
            "type": "about:blank",
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }


def unprocessable(code: str, detail: str) -> Problem:
    """A request that is well-formed and cannot be served as it is (422)."""
    return Problem(422, code, detail)


def gone() -> Problem:
    """The job was delivered, erased or has expired (410)."""
    return Problem(
        410, "gone", "This job was delivered, erased or has expired. Nothing of it is left."
    )


def job_not_found() -> Problem:
    """No such job for this token; an unknown id and a wrong token look alike (404)."""
    return Problem(
        404, "job_not_found", "No job under this id and token. Check both, or submit it again."
    )


def store_unavailable() -> Problem:
    """Redis does not answer (503)."""
    return Problem(
        503,
        "store_unavailable",
        "The job store does not answer. Try again in a moment.",
        {"Retry-After": "1"},
    )

"""The frame of portable prompts: base64 of three letters that name the kind of model, 8 bytes that
name its weights, the number of records, and records of one length.

Not a pickle and not a tensor file: whoever reads it checks lengths and can do nothing else.
"""

import base64
import binascii

from jobs.problems import Problem, unprocessable

_MOST = 32  # records, each of which is an example


def write(magic: bytes, identity: bytes, records: list[bytes]) -> str:
    """Frame 1 to 32 records of equal length, made by weights of that identity (8 bytes)."""
    return base64.b64encode(b"".join([magic, identity, bytes([len(records)]), *records])).decode()


def read(text: str, magic: bytes, identity: bytes, size: int) -> list[bytes]:
    """The records of `size` bytes each.

    Raises:
        Problem: 422 ``embedding_invalid`` if it is none, or one of other weights.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("is not base64 of an embedding") from None
    start = len(magic) + 9
    head, body = data[:start], data[start:]
    if not head.startswith(magic) or len(head) < start:
        raise invalid("is no embedding of this model")
    if head[len(magic) : -1] != identity:
        raise invalid("was made by another version of the model")
    if not 1 <= head[-1] <= _MOST or len(body) != head[-1] * size:
        raise invalid("is cut off")
    return [body[at : at + size] for at in range(0, len(body), size)]


def invalid(why: str) -> Problem:
    return unprocessable(
        "embedding_invalid", f'An embedding {why}. Make it anew with "task": "embed".'
    )

"""Who can read what.

An image and its request are sealed to the workers' public key (HPKE, RFC 9180) as soon as they
are complete; a result is sealed under a key that only the job's capability yields. Redis sees
ciphertext, logs see ids, and the front door holds a capability only while it handles a request.

A client may seal its payload itself, and name a public key of its own for the result: then the
front door sees ciphertext as well. `docs/sealed.md` has the form.
"""

import base64
import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from jobs.settings import SettingsError

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_NONCE = 12
_TO_TOKEN, _TO_CLIENT = b"t", b"c"  # what a stored result begins with: who can open it


class SealError(Exception):
    """A sealed thing was made for another key or another job, or was changed."""


class Capability:
    """32 random bytes that own one job: they name it, and open its result.

    Attributes:
        id: 32 hex digits, a one-way function of the secret; may be logged.
        token: the secret as unpadded base64url, 43 characters; shown once, never stored.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise ValueError("a capability is 32 bytes")
        self._secret = secret
        self.id = hashlib.sha256(b"mayfly/v1/id" + secret).hexdigest()[:32]

    @classmethod
    def new(cls) -> "Capability":
        return cls(os.urandom(32))

    @classmethod
    def from_token(cls, token: str) -> "Capability":
        """Raises ValueError when the token is not base64url of 32 bytes."""
        try:
            return cls(base64.b64decode(token + "=", altchars=b"-_", validate=True))
        except ValueError:
            raise ValueError("a token is base64url of 32 bytes") from None

    @property
    def token(self) -> str:
        return base64.urlsafe_b64encode(self._secret).decode().rstrip("=")

    @property
    def result_key(self) -> bytes:
        """32 bytes, HKDF-SHA256 of the secret."""
        return HKDF(SHA256(), 32, salt=None, info=b"mayfly/v1/result").derive(self._secret)

    def __repr__(self) -> str:
        return f"Capability(id={self.id})"


Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Payload(msgspec.Struct, frozen=True, array_like=True):
    """All that a worker needs: the request, the images by part name, and how to seal the result.

    `request` is the contract's JSON with `model` set. `received_ms` is the wall clock of the front
    door, or of the client if it sealed the payload. `result_key` is a secret that the capability
    yields, or the public key of a client that wants to be the only one who can open the result.
    """

    result_key: Key
    request: bytes
    images: dict[str, bytes]
    received_ms: int
    by_client: bool = False

    def seal_result(self, job_id: str, plain: bytes) -> bytes:
        """Seal the result to whom it is for.

        Raises:
            SealError: the client's key is none.
        """
        if not self.by_client:
            return seal_result(self.result_key, job_id, plain)
        try:
            return _TO_CLIENT + PublicKey(self.result_key).seal_bytes(_result_info(job_id), plain)
        except ValueError:  # a point of small order, for example
            raise SealError("result cannot be sealed") from None


_payload = msgspec.msgpack.Decoder(Payload)


class PublicKey:
    """Seals payloads to the workers."""

    def __init__(self, raw: bytes) -> None:
        self._key = X25519PublicKey.from_public_bytes(raw)
        self.raw = raw
        self.id = hashlib.sha256(raw).hexdigest()[:16]

    def seal(self, job_id: str, payload: Payload) -> bytes:
        return self.seal_bytes(_info(job_id), msgspec.msgpack.encode(payload))

    def seal_bytes(self, info: bytes, plain: bytes) -> bytes:
        """HPKE base mode: 32 bytes of encapsulated key, then the ciphertext."""
        return _SUITE.encrypt(plain, self._key, info)

    @classmethod
    def from_text(cls, text: str) -> "PublicKey":
        """The first key of a file's text. Raises ValueError if there is none."""
        return cls(base64.b64decode(text.partition("\n")[0].strip(), validate=True))

    @classmethod
    def load(cls, path: Path) -> "list[PublicKey]":
        """The workers' public keys, the one to use first."""
        return [cls(raw) for raw in _read_keys(path, "public")]


class PrivateKey:
    """Opens payloads; lives in workers only."""

    def __init__(self, raw: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(raw)
        self.raw = raw
        self.public = PublicKey(self._key.public_key().public_bytes_raw())

    @classmethod
    def new(cls) -> "PrivateKey":
        return cls(X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load(cls, path: Path) -> "list[PrivateKey]":
        """All keys that still open something, the newest first."""
        return [cls(raw) for raw in _read_keys(path, "private")]

    def open(self, job_id: str, sealed: bytes) -> Payload:
        """Raises SealError when it was sealed to another key or for another job."""
        try:
            return _payload.decode(self._open_bytes(_info(job_id), sealed))
        except msgspec.MsgspecError:
            raise SealError("payload does not open") from None

    def open_result(self, job_id: str, sealed: bytes) -> bytes:
        """A result that was sealed to this key, a client's. Raises SealError otherwise."""
        return self._open_bytes(_result_info(job_id), sealed)

    def _open_bytes(self, info: bytes, sealed: bytes) -> bytes:
        try:
            return _SUITE.decrypt(sealed, self._key, info)
        except (InvalidTag, ValueError):
            raise SealError("does not open") from None

    def __repr__(self) -> str:
        return f"PrivateKey(public id={self.public.id})"


def open_payload(keys: Sequence[PrivateKey], job_id: str, sealed: bytes) -> Payload:
    """Open with whichever of the keys fits. Raises SealError when none does."""
    for key in keys:
        with contextlib.suppress(SealError):
            return key.open(job_id, sealed)
    raise SealError("payload does not open")


def seal_result(result_key: bytes, job_id: str, plain: bytes) -> bytes:
    """AES-256-GCM under the capability's result key, bound to the job's id."""
    nonce = os.urandom(_NONCE)
    return _TO_TOKEN + nonce + AESGCM(result_key).encrypt(nonce, plain, job_id.encode())


def open_result(result_key: bytes, job_id: str, sealed: bytes) -> bytes:
    """Raises SealError when the key or the id is another one's, or only the client can open it."""
    kind, nonce, ciphertext = sealed[:1], sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :]
    if kind != _TO_TOKEN:
        raise SealError("result is sealed to its client")
    try:
        return AESGCM(result_key).decrypt(nonce, ciphertext, job_id.encode())
    except (InvalidTag, ValueError):
        raise SealError("result does not open") from None


def for_client(sealed: bytes) -> bytes | None:
    """What only the client can open of a stored result; None where the token is enough."""
    return sealed[1:] if sealed[:1] == _TO_CLIENT else None


def key_text(*keys: bytes) -> str:
    """Keys as they stand in a file: base64, one a line."""
    return "".join(base64.b64encode(raw).decode() + "\n" for raw in keys)


def _info(job_id: str) -> bytes:
    return b"mayfly/v1/image|" + job_id.encode()


def _result_info(job_id: str) -> bytes:
    return b"mayfly/v1/result|" + job_id.encode()


def _read_keys(path: Path, kind: str) -> list[bytes]:
    try:
        lines = path.read_text().split()
    except OSError as error:
        raise SettingsError(
            f"The {kind} sealing key cannot be read ({error.strerror}). Make a key pair with "
            "`mayfly keys worker` and point MAYFLY_WORKER_KEY_FILE (worker) and "
            "MAYFLY_WORKER_PUBLIC_KEY_FILE (front door) at its files."
        ) from None
    except ValueError:
        lines = []
    try:
        keys = [base64.b64decode(line, validate=True) for line in lines]
    except ValueError:
        keys = []
    if not keys or any(len(raw) != 32 for raw in keys):
        raise SettingsError(
            f"The {kind} sealing key file does not hold keys: one a line, base64 of 32 bytes."
        )
    return keys

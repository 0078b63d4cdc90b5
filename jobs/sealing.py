"""Who can read what.

An image and its request are sealed to the workers' public key (HPKE, RFC 9180) as soon as they
are complete; a result is sealed under a key that only the job's capability yields. Redis sees
ciphertext, logs see ids, and the front door holds a capability only while it handles a request.
"""

import base64
import binascii
import hashlib
import os
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from jobs.contract import Request
from jobs.settings import SettingsError

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_NONCE = 12


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


class Payload(msgspec.Struct, frozen=True, array_like=True):
    """All that a worker needs: the request, the images by part name, and how to seal the result.

    `request.model` is set. `received_ms` is the front door's wall clock.
    """

    result_key: bytes
    request: Request
    images: dict[str, bytes]
    received_ms: int


_payload = msgspec.msgpack.Decoder(Payload)


class PublicKey:
    """Seals payloads to the workers."""

    def __init__(self, raw: bytes) -> None:
        self._key = X25519PublicKey.from_public_bytes(raw)
        self.raw = raw
        self.id = hashlib.sha256(raw).hexdigest()[:16]

    def seal(self, job_id: str, payload: Payload) -> bytes:
        return _SUITE.encrypt(msgspec.msgpack.encode(payload), self._key, _info(job_id))

    @classmethod
    def load(cls, path: Path) -> "PublicKey":
        return cls(_read_key(path, "public"))


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
    def load(cls, path: Path) -> "PrivateKey":
        return cls(_read_key(path, "private"))

    def open(self, job_id: str, sealed: bytes) -> Payload:
        """Raises SealError when it was sealed to another key or for another job."""
        try:
            return _payload.decode(_SUITE.decrypt(sealed, self._key, _info(job_id)))
        except (InvalidTag, ValueError, msgspec.MsgspecError):
            raise SealError("payload does not open") from None

    def __repr__(self) -> str:
        return f"PrivateKey(public id={self.public.id})"


def seal_result(result_key: bytes, job_id: str, plain: bytes) -> bytes:
    """AES-256-GCM under the capability's result key, bound to the job's id."""
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(result_key).encrypt(nonce, plain, job_id.encode())


def open_result(result_key: bytes, job_id: str, sealed: bytes) -> bytes:
    """Raises SealError when the key or the id is another one's."""
    try:
        return AESGCM(result_key).decrypt(sealed[:_NONCE], sealed[_NONCE:], job_id.encode())
    except (InvalidTag, ValueError):
        raise SealError("result does not open") from None


def key_text(raw: bytes) -> str:
    """A key as it stands in a file: one line of base64."""
    return base64.b64encode(raw).decode() + "\n"


def _info(job_id: str) -> bytes:
    return b"mayfly/v1/image|" + job_id.encode()


def _read_key(path: Path, kind: str) -> bytes:
    try:
        raw = base64.b64decode(path.read_text().strip(), validate=True)
    except OSError as error:
        raise SettingsError(
            f"The {kind} sealing key cannot be read ({error.strerror}). Make a key pair with "
            "`mayfly keys worker` and point MAYFLY_WORKER_KEY_FILE (worker) and "
            "MAYFLY_WORKER_PUBLIC_KEY_FILE (front door) at its files."
        ) from None
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        raise SettingsError(
            f"The {kind} sealing key file does not hold a key: one line, base64 of 32 bytes."
        )
    return raw

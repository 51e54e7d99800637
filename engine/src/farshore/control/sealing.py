"""Seals what a site keeps for a control plane that follows this one, and opens it with the key that people keep.

Three keys take part. The *recovery key* (X25519) is made once per home: its private half is a text that the operator
takes away, only its public half stays. Each bundle is encrypted to it with ChaCha20-Poly1305 under a key that HKDF
draws from an X25519 exchange with a key made for this one bundle. Because anybody who has the public half could do
that, the whole is signed with the control plane's own key, whose public half stands in the operator's text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import Field, ValidationError

from farshore.errors import Corruption, Invalid
from farshore.model.base import Model

FORMAT: Final = "farshore-bundle-1"
_INFO: Final = b"farshore site bundle 1"
#: A bundle of 10,000 machines has about 8 MB before it is packed; more is an attack or a mistake.
LARGEST_BYTES: Final = 256 << 20
_RAW: Final = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)

_TEXT: Final = """\
# Farshore recovery key. With it and a site's bundle a new control plane takes over when this one is lost:
#   farshore up --recover-from BUNDLE --recovery-key THIS-FILE
# Keep it away from this machine and from the protected site (a safe, a password manager, paper), then remove it here.
# Whoever has it together with a bundle can act as this control plane. It is made once and cannot be shown again.
catalog: {catalog}
recovery-key: {secret}
signed-by: {signer}
"""


class Header(Model):
    """What anybody may read of a bundle; covered by its encryption and its signature."""

    catalog_id: str
    generation: int = Field(ge=1)
    number: int = Field(ge=1)
    written_at: float
    recovery_key: str

    @property
    def order(self) -> tuple[int, int]:
        """Newer bundles of a catalogue have a higher one."""
        return self.generation, self.number

    @property
    def name(self) -> str:
        """The bundle's key in a manifest store."""
        return f"bundles/{self.catalog_id}/{self.generation:010d}-{self.number:010d}.json"


class _Envelope(Model):
    format: str
    header: Header
    ephemeral: str
    data: str
    signature: str


@dataclass(frozen=True, slots=True)
class RecoveryKey:
    """What the operator keeps: the secret that opens bundles, and the key that must have signed them."""

    catalog_id: str
    secret: bytes
    signer: bytes

    @property
    def public(self) -> bytes:
        """The half that seals, 32 bytes."""
        return X25519PrivateKey.from_private_bytes(self.secret).public_key().public_bytes(*_RAW)

    @property
    def text(self) -> str:
        """The text for people to keep."""
        return _TEXT.format(catalog=self.catalog_id, secret=_b64(self.secret), signer=_b64(self.signer))

    def __repr__(self) -> str:
        return f"RecoveryKey({self.catalog_id}, {key_id(self.public)})"


def make_key(catalog_id: str, signer: Ed25519PublicKey) -> RecoveryKey:
    """Return a new recovery key of a catalogue whose bundles ``signer`` signs."""
    return RecoveryKey(catalog_id, X25519PrivateKey.generate().private_bytes_raw(), signer.public_bytes(*_RAW))


def read_key(text: str) -> RecoveryKey:
    """Return the recovery key in ``text``; lines that say nothing of it are passed over.

    Raises:
        Invalid: there is none in it, or a part is missing.
    """
    found = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and not line.lstrip().startswith("#"):
            found[name.strip()] = value.strip()
    missing = [name for name in ("catalog", "recovery-key", "signed-by") if not found.get(name)]
    if missing:
        raise _no_key(f"the line {', '.join(missing)} is missing")
    try:
        secret, signer = (base64.b64decode(found[name], validate=True) for name in ("recovery-key", "signed-by"))
    except (binascii.Error, ValueError) as error:
        raise _no_key("it was cut or mistyped") from error
    if (len(secret), len(signer)) != (32, 32):
        raise _no_key("it was cut or mistyped")
    return RecoveryKey(found["catalog"], secret, signer)


def _no_key(why: str) -> Invalid:
    return Invalid(
        f"this is no recovery key: {why}",
        code="recovery-key-invalid",
        field="--recovery-key",
        hint="Name the file `recovery.key` that `farshore up` wrote when the installation was made.",
    )


def public_text(public: bytes) -> str:
    """Return the sealing half as it is kept."""
    return _b64(public) + "\n"


def read_public(text: str) -> bytes:
    """Return the sealing half that was kept."""
    return base64.b64decode(text.strip(), validate=True)


def key_id(public: bytes) -> str:
    """Return the short name of a recovery key, from its public half."""
    return hashlib.sha256(public).hexdigest()[:16]


def seal(content: dict[str, Any], header: Header, public: bytes, signer: Ed25519PrivateKey) -> str:
    """Return the bundle as text: only the holder of the recovery key reads it, nobody else can have written it."""
    ephemeral = X25519PrivateKey.generate()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
    own = ephemeral.public_key().public_bytes(*_RAW)
    key, nonce = _derive(shared, own, public)
    head = header.model_dump(mode="json")
    packed = zlib.compress(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    data = ChaCha20Poly1305(key).encrypt(nonce, packed, _canonical({"format": FORMAT, "header": head}))
    envelope = {"format": FORMAT, "header": head, "ephemeral": _b64(own), "data": _b64(data)}
    signature = _b64(signer.sign(_canonical(envelope)))
    return json.dumps({**envelope, "signature": signature}, sort_keys=True) + "\n"


def peek(text: str) -> Header:
    """Return what a bundle says of itself; nothing of it is proven yet.

    Raises:
        Corruption: it is no whole bundle.
        Invalid: it is of a form that this version does not know.
    """
    return _parse(text).header


def _parse(text: str) -> _Envelope:
    try:
        data = json.loads(text)
        if isinstance(data, dict) and str(data.get("format", "")) != FORMAT and "format" in data:
            raise Invalid(
                f"the bundle has the form {data['format']!r}; this version reads {FORMAT!r}",
                code="bundle-format",
                field="--recover-from",
                hint="Install the version of Farshore that wrote it.",
            )
        return _Envelope.model_validate(data)
    except (ValueError, ValidationError) as error:
        raise damaged("it is no whole bundle: it was cut off, or is something else") from error


def damaged(why: str) -> Corruption:
    """Return the error of a bundle whose bytes are not what was written."""
    return Corruption(
        f"the bundle cannot be used: {why}",
        code="bundle-damaged",
        field="--recover-from",
        hint="Take it from the site again, from another site, or take the one before: each site keeps several.",
    )


def unseal(text: str, key: RecoveryKey) -> tuple[Header, dict[str, Any]]:
    """Return what a bundle holds.

    Raises:
        Invalid: it is of another installation (``bundle-foreign``) or another key's (``recovery-key-wrong``).
        Corruption: a byte of it was changed or is missing, or somebody else wrote it (``bundle-damaged``).
    """
    envelope = _parse(text)
    header = envelope.header
    if header.catalog_id != key.catalog_id:
        raise Invalid(
            f"the bundle is of installation {header.catalog_id}, the recovery key of {key.catalog_id}",
            code="bundle-foreign",
            field="--recover-from",
            hint="Several installations keep bundles at this site; take the other one, or the other key.",
        )
    if header.recovery_key != key_id(key.public):
        raise Invalid(
            f"the bundle is sealed to recovery key {header.recovery_key}, this one is {key_id(key.public)}",
            code="recovery-key-wrong",
            field="--recovery-key",
            hint="Use the key that belongs to this installation.",
        )
    covered = {"format": envelope.format, "header": header.model_dump(mode="json")}
    try:
        own, data, signature = (_of_b64(part) for part in (envelope.ephemeral, envelope.data, envelope.signature))
        Ed25519PublicKey.from_public_bytes(key.signer).verify(
            signature, _canonical({**covered, "ephemeral": envelope.ephemeral, "data": envelope.data})
        )
        shared = X25519PrivateKey.from_private_bytes(key.secret).exchange(X25519PublicKey.from_public_bytes(own))
        secret, nonce = _derive(shared, own, key.public)
        packed = ChaCha20Poly1305(secret).decrypt(nonce, data, _canonical(covered))
        unpacker = zlib.decompressobj()
        content = json.loads(unpacker.decompress(packed, LARGEST_BYTES))
    except (InvalidSignature, InvalidTag) as error:
        raise damaged("a byte of it was changed, or this installation did not write it") from error
    except (binascii.Error, ValueError, zlib.error) as error:
        raise damaged("what it holds cannot be read") from error
    if not isinstance(content, dict):
        raise damaged("what it holds cannot be read")
    return header, content


def _derive(shared: bytes, ephemeral: bytes, public: bytes) -> tuple[bytes, bytes]:
    drawn = HKDF(hashes.SHA256(), 44, salt=ephemeral + public, info=_INFO).derive(shared)
    return drawn[:32], drawn[32:]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _of_b64(text: str) -> bytes:
    """Return what ``text`` stands for; ValueError if it is not how we would write that: its last bits may vary."""
    data = base64.b64decode(text, validate=True)
    if _b64(data) != text:
        raise ValueError("not canonical")
    return data

"""Evidence of a run: a report that shows any change made to it afterwards.

A report is JSON in one form only, with the digest of the report before it and those of its page and its JUnit file. All
of it is covered by its own SHA-256 digest, which is signed with Ed25519. Whoever holds the public key checks it
without this control plane.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from farshore.errors import Corruption
from farshore.recovery import junit, pages

#: What the first report of a control plane follows.
ORIGIN: Final = "0" * 64
VERSION: Final = 2
#: What the digest covers, by version. The first one had no renderings.
_COVERED: Final[dict[int, tuple[str, ...]]] = {
    1: ("version", "position", "previous", "body"),
    VERSION: ("version", "position", "previous", "body", "renderings"),
}
_ADDED: Final = ("digest", "signature", "public_key")


def seal(
    body: dict[str, Any],
    *,
    position: int,
    previous: str,
    key: Ed25519PrivateKey,
    renderings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the report that holds ``body`` (JSON values) as the ``position``-th, after the one called ``previous``.

    ``renderings`` are the texts beside it, by name; those of :func:`render` unless given.
    """
    texts = render(body, position, previous) if renderings is None else renderings
    covered = {
        "version": VERSION,
        "position": position,
        "previous": previous,
        "body": body,
        "renderings": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
    }
    digest = hashlib.sha256(_canonical(covered)).hexdigest()
    return {
        **covered,
        "digest": digest,
        "signature": base64.b64encode(key.sign(bytes.fromhex(digest))).decode(),
        "public_key": pem(key.public_key()),
    }


def render(
    body: dict[str, Any], position: int, previous: str, sights: Mapping[str, pages.Sight] | None = None
) -> dict[str, str]:
    """Return what lies beside a report: ``html``, a page for people, and ``junit``, for CI systems.

    ``sights``: what machines showed, by their names, for the page; the body holds the digests of it.
    """
    return {"html": pages.html(body, position, previous, sights), "junit": junit.junit(body)}


def encode(report: dict[str, Any]) -> bytes:
    """Return the one form in which a report is written."""
    return json.dumps(report, indent=1, sort_keys=True).encode() + b"\n"


def read(data: bytes) -> dict[str, Any]:
    """Return the report in a file.

    Raises:
        Corruption: it is none, or is not written as reports are: something was changed, if only a space.
    """
    try:
        report = json.loads(data)
        written = encode(report)
    except (ValueError, RecursionError) as error:
        raise Corruption(f"this is no report: {error}", code="report-invalid") from error
    if not isinstance(report, dict):
        raise _invalid("it is no JSON object")
    if written != data:
        at = next((index for index, pair in enumerate(zip(data, written, strict=False)) if pair[0] != pair[1]), None)
        place = min(len(data), len(written)) if at is None else at
        line = data[:place].count(b"\n") + 1
        raise Corruption(
            f"the file was changed at byte {place} (line {line}): reports are not written like that",
            code="report-changed",
            hint="Fetch it again: `farshore run report RUN -o FILE`.",
            byte=place,
            line=line,
        )
    return report


def verify(report: dict[str, Any], public_key: Ed25519PublicKey | None = None) -> None:
    """Check a report against a trusted key; without one only against the key that it carries itself.

    Raises:
        Corruption: a part of it was changed (the message says which), or another key signed it.
    """
    names = _COVERED.get(report.get("version")) if isinstance(report, dict) else None  # type: ignore[arg-type]
    if names is None:
        raise _invalid("it has no version that is known here")
    wanted = {*names, *_ADDED}
    if set(report) != wanted:
        odd = ", ".join(sorted(map(str, set(report) ^ wanted)))
        raise _invalid(f"it lacks or adds {odd}")
    try:
        covered = {name: report[name] for name in names}
        digest = hashlib.sha256(_canonical(covered)).hexdigest()
        if digest != report["digest"]:
            raise Corruption(
                "the report was changed: its content, its place in the chain or its digest is not as it was signed",
                code="report-changed",
                digest=digest,
                says=report["digest"],
            )
        carried = _carried(report["public_key"])
        if pem(carried) != report["public_key"]:
            raise _invalid("its public key is not written as such keys are")
        if public_key is not None and pem(public_key) != report["public_key"]:
            raise Corruption(
                "the report was signed with another key than the one given",
                code="report-forged",
                hint="Ask the operator for the key of the control plane that wrote it: `farshore evidence key`.",
                carries=fingerprint(carried),
                given=fingerprint(public_key),
            )
        signature = base64.b64decode(report["signature"], validate=True)
        if base64.b64encode(signature).decode() != report["signature"]:
            raise _invalid("its signature is not written as base64 is")
        (public_key or carried).verify(signature, bytes.fromhex(digest))
    except InvalidSignature as error:
        raise Corruption("the report's signature is not that of the key", code="report-forged") from error
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise _invalid(str(error)) from error


def verify_rendering(report: dict[str, Any], name: str, data: bytes) -> None:
    """Check the ``html`` or ``junit`` file beside a report that was verified.

    Raises:
        Corruption: it was changed, or is another run's.
    """
    wanted = report.get("renderings", {}).get(name)
    if wanted is None:
        raise Corruption(f"the report covers no {name} file", code="rendering-unknown")
    if hashlib.sha256(data).hexdigest() != wanted:
        raise Corruption(
            f"the {name} file was changed, or is that of another run", code="rendering-changed", rendering=name
        )


def verify_chain(
    reports: Sequence[dict[str, Any]], public_key: Ed25519PublicKey | None = None, *, from_origin: bool = False
) -> None:
    """Check reports that follow each other, oldest first, none left out.

    ``from_origin``: the first one has to be the first of its control plane.

    Raises:
        Corruption: one was changed, or one is missing.
    """
    for index, report in enumerate(reports):
        verify(report, public_key)
        if index == 0:
            if from_origin and (report["position"] != 1 or report["previous"] != ORIGIN):
                raise Corruption(
                    f"the chain begins with report {report['position']}: those before it are missing",
                    code="report-chain-cut",
                    position=report["position"],
                )
            continue
        before = reports[index - 1]
        if report["position"] == before["position"]:
            raise Corruption(
                f"there are two reports {report['position']}", code="report-chain-forked", position=report["position"]
            )
        if report["position"] != before["position"] + 1:
            missing = f"{before['position'] + 1}"
            if report["position"] > before["position"] + 2:
                missing += f" to {report['position'] - 1}"
            raise Corruption(
                f"report {report['position']} does not follow {before['position']}: {missing} is missing",
                code="report-chain-cut",
                position=report["position"],
            )
        if report["previous"] != before["digest"]:
            raise Corruption(
                f"report {report['position']} does not follow the one before it: it names another digest",
                code="report-chain-broken",
                position=report["position"],
            )


def load_key(data: bytes) -> Ed25519PublicKey:
    """Return the public key in a PEM file.

    Raises:
        Corruption: it holds none of Ed25519.
    """
    try:
        return _carried(data.decode("ascii"))
    except (ValueError, TypeError) as error:
        raise Corruption(
            "this is no public key of reports",
            code="key-invalid",
            hint="It begins with -----BEGIN PUBLIC KEY-----; `farshore evidence key` writes it.",
        ) from error


def pem(key: Ed25519PublicKey) -> str:
    """Return a public key as text."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return what people compare: SHA-256 of the raw public key."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")


def _carried(text: str) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(text.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError("its public key is of no kind that is known") from error
    if not isinstance(key, Ed25519PublicKey):
        raise TypeError("no Ed25519 key")
    return key


def _invalid(why: str) -> Corruption:
    return Corruption(f"this is no report: {why}", code="report-invalid")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

"""A manifest store in S3: create-if-absent by a conditional put.

An object is its data and one newline more; an object of no bytes is a tombstone. So one put takes an object away for
good, no other put can create its key again, and a listing tells the two apart by their sizes.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final
from uuid import uuid4

from farshore.errors import Conflict, Invalid, NotFound, Retry
from farshore.platforms.aws.account import Account, patiently

#: Keys are relative paths of plain names, as in every manifest store.
_PART: Final = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._:@=+-]{0,254}$")
_END: Final = b"\n"
#: In an object's metadata: the call that has created it, so that a lost reply is told from somebody else's object.
_WRITER: Final = "farshore-writer"


class S3Manifests:
    """Objects below ``folder`` of a bucket."""

    def __init__(self, account: Account, folder: str = "manifests") -> None:
        self._account = account
        self._bucket = account.settings.bucket
        self._folder = f"{account.settings.prefix}/{folder}/"

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with ``prefix``, sorted; tombstoned ones are left out."""
        return sorted(
            found["Key"][len(self._folder) :]
            for page in self._account.pages("s3", "list_objects_v2", Bucket=self._bucket, Prefix=self._folder + prefix)
            for found in page.get("Contents", ())
            if found["Size"] > 0
        )

    def get(self, key: str) -> bytes:
        """Return an object; ``NotFound`` if absent or tombstoned."""
        try:
            data = patiently(partial(self._read, self._key(key)))
        except NotFound as error:
            if error.field is not None:
                raise  # the bucket, not the object
            data = b""
        if not data:
            raise NotFound(f"object {key} does not exist", code="object-not-found", key=key)
        return data[: -len(_END)]

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object, durable on return. False if it exists (also as a tombstone)."""
        return patiently(partial(self._create, self._key(key), data + _END, uuid4().hex))

    def tombstone(self, key: str) -> None:
        """Take an object away for good: it is not listed, not readable, and its key cannot be created again."""
        self._account.patiently("s3", "put_object", Bucket=self._bucket, Key=self._key(key), Body=b"")

    def _create(self, key: str, data: bytes, writer: str) -> bool:
        try:
            self._account.call(
                "s3",
                "put_object",
                Bucket=self._bucket,
                Key=key,
                Body=data,
                IfNoneMatch="*",
                Metadata={_WRITER: writer},
            )
        except Conflict as error:
            if error.evidence.get("aws_code") in {"ConditionalRequestConflict", "409", "OperationAborted"}:
                raise Retry(f"another put of {key} is under way", code="throttled") from error
            # It is there: ours if the first try came through and only its reply was lost.
            found = self._account.patiently("s3", "head_object", Bucket=self._bucket, Key=key)
            return bool(found.get("Metadata", {}).get(_WRITER) == writer)
        return True

    def _read(self, key: str) -> bytes:
        reply = self._account.call("s3", "get_object", Bucket=self._bucket, Key=key)
        return self._account.body(reply["Body"], "s3", "get_object")

    def _key(self, key: str) -> str:
        if not all(_PART.match(part) for part in key.split("/")):
            raise Invalid(f"{key!r} is no key of a manifest store", code="object-key", field="key")
        return self._folder + key

"""TLS 1.3 connections of the data path: the runtime's handshake, and records (RFC 8446, section 5) protected here.

The runtime's TLS takes a record from the kernel, 16 KiB at most, with two calls, decrypts it, copies it, and gives the
interpreter's lock away each time (docs/adr/0025 says what that costs). Here what has come is taken with one call, and
each record is decrypted to where it belongs; on the way out they are encrypted side by side and handed over together.
The handshake, with all that decides who is trusted, is the runtime's, and the cryptography is a library's. On the wire
this is TLS 1.3 and nothing else: either end may be any other implementation.

Differences from :class:`ssl.SSLSocket`: nothing is sent when a connection is closed, and its end counts as an end
whether the peer announced it or not, for frames say how long they are. Keys are replaced long before their limit.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from farshore.units import KIB, MIB

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

#: Data in one record, at most.
RECORD_BYTES: Final = 16 * KIB
_HEADER_BYTES: Final = 5
_TAG_BYTES: Final = 16
_IV_BYTES: Final = 12
#: What protects a record may add, at most, padding included; whoever sends more is refused.
_SEALED_MAX: Final = RECORD_BYTES + 256
#: What a record of ours has at most, all in all: its header, the data, one byte that says what it is, the tag.
_OURS_MAX: Final = _HEADER_BYTES + RECORD_BYTES + 1 + _TAG_BYTES
#: What is taken from the kernel at once. With 128 KiB a target took a tenth more of its processor.
TAKEN_BYTES: Final = 1 * MIB
#: What is handed to the kernel at once.
HANDED_BYTES: Final = 256 * KIB
#: Records under one key, at most, a third of what AES-GCM is good for (RFC 8446, section 5.5): 128 GiB.
KEY_RECORDS: Final = 1 << 23
#: A message of the handshake that comes after it, at most.
_MESSAGE_MAX: Final = 16 * KIB

_ALERT: Final = 21
_HANDSHAKE: Final = 22
_DATA: Final = 23
_CLOSE_NOTIFY: Final = 0
_UNEXPECTED_MESSAGE: Final = 10
_BAD_RECORD_MAC: Final = 20
_RECORD_OVERFLOW: Final = 22
_NEW_SESSION_TICKET: Final = 4
_KEY_UPDATE: Final = 24
_UPDATE: Final = bytes([_KEY_UPDATE, 0, 0, 1, 0])
_UPDATE_AND_ANSWER: Final = bytes([_KEY_UPDATE, 0, 0, 1, 1])
_VERSION: Final = b"\x03\x03"
_FULL_HEADER: Final = bytes([_DATA]) + _VERSION + (RECORD_BYTES + 1 + _TAG_BYTES).to_bytes(2, "big")


@dataclass(frozen=True, slots=True)
class Suite:
    """A way to protect records."""

    cipher: type[AESGCM | ChaCha20Poly1305]
    key_bytes: int
    hash: HashAlgorithm


SUITES: Final = {
    "TLS_AES_256_GCM_SHA384": Suite(AESGCM, 32, SHA384()),
    "TLS_AES_128_GCM_SHA256": Suite(AESGCM, 16, SHA256()),
    "TLS_CHACHA20_POLY1305_SHA256": Suite(ChaCha20Poly1305, 32, SHA256()),
}


class Keys:
    """What protects one direction: a key, and the number of its next record (RFC 8446, sections 5.3 and 7)."""

    def __init__(self, suite: Suite, secret: bytes) -> None:
        self._suite = suite
        self._secret = secret
        self.cipher = suite.cipher(self._expanded("key", suite.key_bytes))
        self.iv = int.from_bytes(self._expanded("iv", _IV_BYTES), "big")
        self.number = 0

    def next(self) -> Keys:
        """Return those that follow after a key update."""
        return Keys(self._suite, self._expanded("traffic upd", self._suite.hash.digest_size))

    def _expanded(self, label: str, size_bytes: int) -> bytes:
        name = b"tls13 " + label.encode()
        info = size_bytes.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0"
        return HKDFExpand(self._suite.hash, size_bytes, info).derive(self._secret)


class Secured(socket.socket):
    """A TLS 1.3 connection after its handshake; for one thread at a time.

    Made by :func:`secure`. ``certificate`` is what the peer showed, in DER form, None if it showed none. Waiting is as
    the socket's mode says; where it may not wait, ``BlockingIOError`` says that nothing whole has come yet.
    """

    def __init__(
        self, plain: socket.socket, reading: Keys, writing: Keys, certificate: bytes | None, come: bytes
    ) -> None:
        timeout_s = plain.gettimeout()
        super().__init__(plain.family, plain.type, plain.proto, plain.detach())
        self.settimeout(timeout_s)
        self.certificate = certificate
        self._reading = reading
        self._writing = writing
        self._answers_update = False
        self._ended = False
        self._message = bytearray()
        # What has come and is not opened yet is raw[first:last].
        self._raw = _pages(TAKEN_BYTES)
        self._raw[: len(come)] = come
        self._first, self._last = 0, len(come)
        # A record that does not end where what was asked for ends, and what of it was not taken yet.
        self._odd = _pages(_SEALED_MAX)
        self._rest = self._odd[:0]
        self._sealed = _pages(HANDED_BYTES)
        self._piece = _pages(RECORD_BYTES + 1)

    # Reading --------------------------------------------------------------------------------------------------------

    def pending(self) -> bool:
        """Say whether data is here already, so that the kernel need not be asked.

        Raises:
            OSError: as :meth:`recv_into`.
        """
        if not self._rest and not self._ended:
            self._open(self._odd[:0])
        return bool(self._rest) or self._ended

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Return data as soon as there is some, at most ``bufsize`` bytes; nothing at the end."""
        buffer = bytearray(bufsize)
        return bytes(memoryview(buffer)[: self.recv_into(buffer, bufsize, flags)])

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Put data into ``buffer`` as soon as there is some and return how much; 0 at the end.

        What lies behind the data in ``buffer`` may have been overwritten.

        Raises:
            ssl.SSLError: what came is not what the peer sent, or the peer says that it cannot go on.
        """
        if flags:
            raise ValueError("a TLS connection has no flags")
        view = memoryview(buffer)[: nbytes or None]
        if self._rest:
            count = min(len(view), len(self._rest))
            view[:count] = self._rest[:count]
            self._rest = self._rest[count:]
            return count
        while not self._ended:
            count = self._open(view)
            if count or self._ended:
                return count
            self._take()
        return 0

    def _take(self) -> None:
        """Take what has come from the kernel."""
        raw, size = self._raw, self._last - self._first
        if not size:
            self._first = self._last = 0
        elif len(raw) - self._last < _SEALED_MAX:
            raw[:size] = bytes(raw[self._first : self._last])
            self._first, self._last = 0, size
        count = super().recv_into(raw[self._last :])
        self._last += count
        self._ended = not count

    def _open(self, view: memoryview) -> int:
        """Decrypt what is here of whole records to ``view``, and return how much data that is.

        The last one may bring more, which is kept; where ``view`` is empty, one is opened to be kept. What is wrong, or
        is no data, is met once all that came before it was returned.
        """
        raw, first, last, keys = self._raw, self._first, self._last, self._reading
        at, size = 0, len(view)
        decrypt, iv = keys.cipher.decrypt_into, keys.iv
        while (at < size or not (size or self._rest)) and last - first >= _HEADER_BYTES:
            sealed_bytes = raw[first + 3] << 8 | raw[first + 4]
            if raw[first] != _DATA or not _TAG_BYTES < sealed_bytes <= _SEALED_MAX:
                if at:
                    break
                self._refuse_record(raw[first], sealed_bytes)
            body = first + _HEADER_BYTES
            end = body + sealed_bytes
            if end > last:
                break
            # Behind the data comes one byte that says what it is; the next record goes over it.
            count = sealed_bytes - _TAG_BYTES - 1
            fits = at + count < size
            into = view[at : at + count + 1] if fits else self._odd[: count + 1]
            try:
                decrypt((iv ^ keys.number).to_bytes(_IV_BYTES, "big"), raw[body:end], raw[first:body], into)
            except InvalidTag:
                if at:
                    break
                self._refuse(_BAD_RECORD_MAC, "a record was changed on its way")
            kind = into[count]
            if kind != _DATA:
                kind, count = _unpadded(into)
                if kind != _DATA and at:
                    break
            keys.number += 1
            self._first = first = end
            if kind != _DATA:
                self._obey(kind, bytes(into[:count]))
                if self._ended:
                    break
                keys = self._reading
                decrypt, iv = keys.cipher.decrypt_into, keys.iv
                continue
            if fits:
                at += count
            elif count:
                taken = min(count, size - at)
                view[at : at + taken] = self._odd[:taken]
                self._rest = self._odd[taken:count]
                at += taken
        return at

    def _obey(self, kind: int, content: bytes) -> None:
        """Do as a record says that is no data."""
        if kind == _ALERT and len(content) == 2:
            self._ended = True
            if content[1] != _CLOSE_NOTIFY:
                raise ssl.SSLError(1, f"[SSL: {_alert_name(content[1])}] the peer gave the connection up")
            return
        if kind != _HANDSHAKE or not content:
            self._refuse(_UNEXPECTED_MESSAGE, f"a record of type {kind} came where data should")
        message = self._message
        message += content
        while len(message) >= 4:
            size = 4 + int.from_bytes(message[1:4], "big")
            if size > _MESSAGE_MAX:
                break
            if len(message) < size:
                return
            whole = bytes(message[:size])
            del message[:size]
            if whole in (_UPDATE, _UPDATE_AND_ANSWER) and not message:
                self._reading = self._reading.next()
                self._answers_update |= whole == _UPDATE_AND_ANSWER
            elif whole[0] != _NEW_SESSION_TICKET:  # of which no use is made
                break
        else:
            return
        self._refuse(_UNEXPECTED_MESSAGE, "a message came that has no place after the handshake")

    def _refuse_record(self, kind: int, sealed_bytes: int) -> NoReturn:
        if sealed_bytes > _SEALED_MAX:
            self._refuse(_RECORD_OVERFLOW, f"a record of {sealed_bytes} bytes came")
        self._refuse(_UNEXPECTED_MESSAGE, f"a record of type {kind} with {sealed_bytes} bytes came where data should")

    def _refuse(self, alert: int, text: str) -> NoReturn:
        """Tell the peer, if that is possible at once, and fail."""
        with contextlib.suppress(OSError):
            super().send(self._sealed[: self._seal_one(_ALERT, bytes([2, alert]), 0)], socket.MSG_DONTWAIT)
        self._ended = True
        raise ssl.SSLError(1, f"[SSL: {_alert_name(alert).removeprefix('ALERT_')}] {text}")

    # Writing --------------------------------------------------------------------------------------------------------

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        """Send all of ``data``."""
        if flags:
            raise ValueError("a TLS connection has no flags")
        self.send_parts(data)

    def send_parts(self, *parts: ReadableBuffer) -> None:
        """Send parts that belong together, as :meth:`seal` says."""
        for sealed in self.seal(*parts):
            super().sendall(sealed)

    def seal(self, *parts: ReadableBuffer) -> Iterator[memoryview]:
        """Return what is to be sent for ``parts``, piece by piece; each has to be sent before the next is asked for.

        Each record is encrypted with one byte behind its data. So a part that can be written to is changed for a
        moment, byte by byte, and is as it was when its last piece was returned; nobody else may use it meanwhile.
        """
        out, piece, at = self._sealed, self._piece, 0
        for part in parts:
            view = memoryview(part)
            fixed, size, begin = view.readonly, len(view), 0
            while begin < size:
                if at + 2 * _OURS_MAX > len(out):
                    yield out[:at]
                    at = 0
                if self._answers_update or self._writing.number >= KEY_RECORDS:
                    self._answers_update = False
                    at = self._seal_one(_HANDSHAKE, _UPDATE, at)
                    self._writing = self._writing.next()
                keys = self._writing
                end = min(begin + RECORD_BYTES, size)
                header = _header(end - begin)
                body = at + _HEADER_BYTES
                stop = body + end - begin + 1 + _TAG_BYTES
                out[at:body] = header
                nonce = (keys.iv ^ keys.number).to_bytes(_IV_BYTES, "big")
                keys.number += 1
                if fixed or end == size:
                    piece[: end - begin] = view[begin:end]
                    piece[end - begin] = _DATA
                    keys.cipher.encrypt_into(nonce, piece[: end - begin + 1], header, out[body:stop])
                else:
                    behind, view[end] = view[end], _DATA
                    try:
                        keys.cipher.encrypt_into(nonce, view[begin : end + 1], header, out[body:stop])
                    finally:
                        view[end] = behind
                begin, at = end, stop
        if at:
            yield out[:at]

    def send_sealed(self, sealed: memoryview) -> int:
        """Hand what :meth:`seal` returned to the kernel, and return how much of it was taken."""
        return super().send(sealed)

    def _seal_one(self, kind: int, content: bytes, at: int) -> int:
        """Put a record that is no data at a place of what is to be sent, and return where it ends."""
        keys, header = self._writing, _header(len(content))
        nonce = (keys.iv ^ keys.number).to_bytes(_IV_BYTES, "big")
        keys.number += 1
        record = header + keys.cipher.encrypt(nonce, content + bytes([kind]), header)
        self._sealed[at : at + len(record)] = record
        return at + len(record)

    # What would go past TLS ------------------------------------------------------------------------------------------

    def _not_here(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError("this would go past TLS")

    send = sendto = sendmsg = sendfile = sendmsg_afalg = _not_here
    recvfrom = recvfrom_into = recvmsg = recvmsg_into = makefile = _not_here
    dup = _not_here


_secrets_lock = threading.Lock()


def secure(
    plain: socket.socket, context: ssl.SSLContext, *, server_side: bool = False, server_hostname: str | None = None
) -> Secured:
    """Do the handshake, within the socket's time-out, and return the connection, which has taken ``plain`` over.

    ``context`` must allow TLS 1.3 only, and as a server give no session tickets.

    Raises:
        ssl.SSLError: the handshake failed; the peer was told why.
        TimeoutError, OSError: the peer fell silent, or is gone. ``plain`` is the caller's to close.
    """
    timeout_s = plain.gettimeout()
    ends_at = None if timeout_s is None else time.monotonic() + timeout_s
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=server_hostname)
    secrets: dict[str, bytes] = {}
    waits = True
    try:
        while waits:
            try:
                waits = not _step(tls, secrets)
            finally:
                if outgoing.pending:
                    plain.sendall(outgoing.read())
            if waits:
                if ends_at is not None:
                    plain.settimeout(max(ends_at - time.monotonic(), 0.001))
                come = plain.recv(RECORD_BYTES)
                if come:
                    incoming.write(come)
                else:
                    incoming.write_eof()
    finally:
        plain.settimeout(timeout_s)
    name = (tls.cipher() or ("none", "", 0))[0]
    try:
        suite = SUITES[name]
        client, server = (
            Keys(suite, secrets[label]) for label in ("CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0")
        )
    except KeyError as error:
        raise ssl.SSLError(1, f"{tls.version()} with {name} cannot be used here") from error
    reading, writing = (client, server) if server_side else (server, client)
    return Secured(plain, reading, writing, tls.getpeercert(binary_form=True), incoming.read())


def _step(tls: ssl.SSLObject, secrets: dict[str, bytes]) -> bool:
    """Take the handshake as far as it goes with what has come, and say whether it is done.

    The runtime tells a connection's secrets to the file that its context names, for those who debug. Here that is a
    pipe which exists for this call only and which nobody else can read; no other handshake runs meanwhile.
    """
    with _secrets_lock:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            tls.context.keylog_filename = f"/proc/self/fd/{writer}"
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            finally:
                tls.context.keylog_filename = None  # type: ignore[assignment]  # which ends it
            with contextlib.suppress(BlockingIOError):
                for line in os.read(reader, RECORD_BYTES).decode("ascii").splitlines():
                    label, _, secret = line.split(" ")
                    secrets[label] = bytes.fromhex(secret)
        finally:
            os.close(reader)
            os.close(writer)
    return done


def _pages(size_bytes: int) -> memoryview:
    """Return memory that is taken from the system as it is used, and is given back at once."""
    return memoryview(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def _header(data_bytes: int) -> bytes:
    if data_bytes == RECORD_BYTES:
        return _FULL_HEADER
    return bytes([_DATA]) + _VERSION + (data_bytes + 1 + _TAG_BYTES).to_bytes(2, "big")


def _unpadded(opened: memoryview) -> tuple[int, int]:
    """Return what a record is, and how much it holds: zeros may follow behind that."""
    count = len(opened) - 1
    while count and not opened[count]:
        count -= 1
    return opened[count], count


def _alert_name(number: int) -> str:
    try:
        return ssl.AlertDescription(number).name.replace("ALERT_DESCRIPTION_", "ALERT_")
    except ValueError:
        return f"ALERT_{number}"

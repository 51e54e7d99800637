"""A zone's primary name server that takes updates: over TCP on loopback, with TSIG."""

from __future__ import annotations

import socketserver
import struct
import threading
from typing import Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.tsig
import dns.update


class NameServer:
    """``records``: what it holds, by name and type. Without the key it refuses."""

    def __init__(self, zones: tuple[str, ...], key: dns.tsig.Key) -> None:
        self.zones = {dns.name.from_text(zone) for zone in zones}
        self.keys = {key.name: key}
        self.records: dict[tuple[str, str], set[str]] = {}
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                head = self.request.recv(2)
                if len(head) < 2:
                    return
                [length] = struct.unpack(">H", head)
                wire = b""
                while len(wire) < length:
                    wire += self.request.recv(length - len(wire))
                answer = outer.answer(wire)
                self.request.sendall(struct.pack(">H", len(answer)) + answer)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, wire: bytes) -> bytes:
        """Answer one message."""
        try:
            message = dns.message.from_wire(wire, keyring=self.keys)
        except (dns.message.UnknownTSIGKey, dns.tsig.BadSignature):
            refusal = dns.message.Message(id=struct.unpack(">H", wire[:2])[0])
            refusal.flags = dns.flags.QR | dns.flags.RD
            refusal.set_opcode(5)
            refusal.set_rcode(dns.rcode.NOTAUTH)
            return refusal.to_wire()
        reply = dns.message.make_response(message)
        if not message.had_tsig:
            reply.set_rcode(dns.rcode.REFUSED)
        elif not isinstance(message, dns.update.UpdateMessage) or message.zone[0].name not in self.zones:
            reply.set_rcode(dns.rcode.NOTZONE)
        else:
            self._apply(message)
        return reply.to_wire()

    def _apply(self, message: dns.update.UpdateMessage) -> None:
        for change in message.update:
            key = (str(change.name), dns.rdatatype.to_text(change.rdtype))
            if change.deleting == dns.rdataclass.ANY:
                self.records.pop(key, None)
            else:
                self.records.setdefault(key, set()).update(str(data) for data in change)

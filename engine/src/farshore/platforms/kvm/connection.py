"""The connection to libvirt, and its errors by duty.

Calls block; a connection may be used by several threads at once (https://libvirt.org/api.html). A daemon that was
restarted is noticed at the next use.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Final

from farshore.errors import Conflict, FarshoreError, NoSpace, NotFound, Permanent, Retry, Unavailable

try:
    import libvirt as _binding
except ImportError:  # an optional extra; Hypervisor says so when it is made
    _binding = None

libvirt: Any = _binding

# Codes of https://libvirt.org/html/libvirt-virterror.html
INTERNAL: Final = 1
OPERATION_FAILED: Final = 9
NO_METADATA: Final = 80
NO_CHECKPOINT: Final = 103
CHECKPOINT_INCONSISTENT: Final = 109
_LOST: Final = frozenset({5, 38, 39})  # no connection, system error, RPC: with a connection that is not alive
_NOT_FOUND: Final = frozenset({42, 43, 50, NO_CHECKPOINT})  # domain, network, storage volume, checkpoint
_STATE: Final = frozenset({55})  # operation invalid in this state
_BUSY: Final = frozenset({68, 86, 97})  # time-out of a state change lock; the agent does not answer, or not to us
_FOREVER: Final = frozenset({3, 8, 27, 67, 84})  # no support, invalid argument, XML, config unsupported, operation


def code_of(error: Exception) -> int:
    """Return libvirt's code of an error that it raised."""
    return int(error.get_error_code() or 0) if isinstance(error, libvirt.libvirtError) else 0


def translate(error: Exception, what: str) -> FarshoreError:
    """Return libvirt's ``error`` as one of ours; ``what`` names what was tried."""
    code = code_of(error)
    said = str(error)
    text = f"{what} failed: {said}"
    kind: type[FarshoreError] = Retry
    if "No space left on device" in said:
        kind = NoSpace
    elif code in _NOT_FOUND:
        kind = NotFound
    elif code in _STATE:
        kind = Conflict
    elif code in _FOREVER:
        kind = Permanent
    elif code in _LOST and ("client socket is closed" in said or "end of file" in said.lower()):
        kind = Unavailable
    name = "machine-busy" if code in _BUSY else None if kind is not Retry else "libvirt-error"
    return kind(text, code=name, libvirt_code=code)


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """Turn libvirt's errors inside the block into ours."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise translate(error, what) from error


class Hypervisor:
    """libvirt at ``uri``; connects at first use.

    Raises:
        Permanent: the Python binding is not installed.
    """

    def __init__(self, uri: str) -> None:
        if libvirt is None:
            raise Permanent(
                "the Python binding of libvirt is not installed",
                code="missing-tool",
                hint="Install libvirt-dev, gcc and pkg-config, then: pip install 'farshore[kvm]'",
            )
        self.uri = uri
        self._lock = threading.Lock()
        self._connection: Any = None
        # Its default prints every error to stderr, handled or not.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)

    def connection(self) -> Any:
        """Return a ``virConnect`` that answered just now.

        Raises:
            Unavailable: libvirt cannot be reached.
        """
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(libvirt.libvirtError):
                    self._connection.getLibVersion()
                    return self._connection
                self._drop()
            try:
                self._connection = libvirt.open(self.uri)
            except libvirt.libvirtError as error:
                raise Unavailable(
                    f"libvirt at {self.uri} does not answer: {error}",
                    hint="Is libvirtd running, and may this node's user reach its socket?",
                    libvirt_code=code_of(error),
                ) from error
            return self._connection

    def _drop(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.close()
        self._connection = None

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        with self._lock:
            if self._connection is not None:
                self._drop()

    def domain(self, machine_id: str) -> Any:
        """Return the ``virDomain`` whose UUID is ``machine_id``; NotFound."""
        connection = self.connection()
        try:
            return connection.lookupByUUIDString(machine_id)
        except libvirt.libvirtError as error:
            if code_of(error) in _NOT_FOUND | {8}:  # 8: it is no UUID
                raise NotFound(f"machine {machine_id} does not exist at {self.uri}", machine_id=machine_id) from error
            raise translate(error, f"looking for machine {machine_id}") from error

    def domains(self) -> list[Any]:
        """Return all domains, running or not."""
        with asking("listing machines"):
            return list(self.connection().listAllDomains(0))

"""A disk that looks like Windows' without any of its code: NTFS with hives and files that a check looks at.

The hives are written here, cell by cell (https://github.com/msuhanov/regf): no real Windows has ever seen them.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from doubles.guest_disks import MIB, START, _table, tool
from farshore.recovery.guest.hives import Setting, changed

SIZE = 24 * MIB
BOOT_DRIVERS = ("disk", "volmgr", "partmgr", "ntfs", "storahci")
INTERFACE = "ControlSet001\\Services\\Tcpip\\Parameters\\Interfaces\\{b7f2}"


@dataclass
class Key:
    """A key with its values and the keys below it."""

    values: dict[str, int | str | list[str]] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)

    def at(self, path: str) -> Key:
        """Return a key below, made where it is missing."""
        node = self
        for part in path.split("\\"):
            node = node.keys.setdefault(part, Key())
        return node


def hive(root: Key) -> bytes:
    """Return a hive."""
    cells = bytearray(32)

    def cell(data: bytes) -> int:
        at = len(cells)
        size = -(-(len(data) + 4) // 8) * 8
        cells.extend(struct.pack("<i", -size) + data + bytes(size - 4 - len(data)))
        return at

    descriptor = struct.pack("<BBHIIII", 1, 0, 0x8004, 0x14, 0x20, 0, 0x2C)
    descriptor += b"\1\1\0\0\0\0\0\5\x12\0\0\0" * 2 + b"\2\0\x08\0\0\0\0\0"
    security = cell(b"sk" + struct.pack("<HIIII", 0, 32, 32, 1, len(descriptor)) + descriptor)

    def value(name: str, data: int | str | list[str]) -> int:
        if isinstance(data, int):
            kind, raw = 4, struct.pack("<I", data)
        elif isinstance(data, str):
            kind, raw = 1, data.encode("utf-16-le") + b"\0\0"
        else:
            kind, raw = 7, b"".join(one.encode("utf-16-le") + b"\0\0" for one in data) + b"\0\0"
        if len(raw) <= 4:
            size, place = len(raw) | 0x80000000, int.from_bytes(raw.ljust(4, b"\0"), "little")
        else:
            size, place = len(raw), cell(raw)
        return cell(b"vk" + struct.pack("<HIIIHH", len(name), size, place, kind, 1, 0) + name.encode())

    def key(name: str, node: Key, top: bool = False) -> int:
        offsets = [(sub, key(sub, below)) for sub, below in sorted(node.keys.items(), key=lambda item: item[0].upper())]
        nothing = 0xFFFFFFFF
        listed = nothing
        if offsets:
            entries = b"".join(struct.pack("<I4s", at, sub.encode()[:4].ljust(4, b"\0")) for sub, at in offsets)
            listed = cell(b"lf" + struct.pack("<H", len(offsets)) + entries)
        values = [value(called, data) for called, data in node.values.items()]
        stored = cell(b"".join(struct.pack("<I", at) for at in values)) if values else nothing
        fields = struct.pack("<HQIIII", 0x2C if top else 0x20, 0, 0, nothing, len(offsets), 0)
        fields += struct.pack("<IIIIII", listed, nothing, len(values), stored, security, nothing)
        fields += struct.pack("<IIIIIHH", 0, 0, 0, 0, 0, len(name), 0)
        return cell(b"nk" + fields + name.encode())

    at = key("ROOT", root, top=True)
    size = -(-(len(cells) + 8) // 4096) * 4096
    free = size - len(cells)
    cells += struct.pack("<i", free) + bytes(free - 4)
    cells[:32] = b"hbin" + struct.pack("<IIIIQI", 0, size, 0, 0, 0, 0)
    base = bytearray(4096)
    struct.pack_into("<4sIIQIIIIIII", base, 0, b"regf", 1, 1, 0, 1, 3, 0, 1, at, size, 1)
    checksum = 0
    for place in range(0, 508, 4):
        checksum ^= struct.unpack_from("<I", base, place)[0]
    struct.pack_into("<I", base, 508, checksum)
    return bytes(base + cells)


def system(services: Mapping[str, int], session: Mapping[str, list[str]] | None = None) -> Key:
    """Return a SYSTEM hive with drivers and services by their start."""
    root = Key()
    root.at("Select").values.update({"Current": 1, "Default": 1, "Failed": 0, "LastKnownGood": 1})
    for name, start in services.items():
        root.at(f"ControlSet001\\Services\\{name}").values.update({"Start": start, "Type": 1, "ErrorControl": 1})
    manager = root.at("ControlSet001\\Control\\Session Manager")
    manager.values.update({"BootExecute": ["autocheck autochk *"], **(session or {})})
    fixed = {"EnableDHCP": 0, "IPAddress": ["10.1.1.5"], "SubnetMask": ["255.255.255.0"]}
    root.at(INTERFACE).values.update({**fixed, "DefaultGateway": ["10.1.1.1"], "NameServer": "10.1.1.53"})
    return root


def software(pending: bool = False) -> Key:
    """Return a SOFTWARE hive."""
    root = Key()
    current = root.at("Microsoft\\Windows NT\\CurrentVersion")
    current.values.update({"ProductName": "Windows Server 2019 Standard", "CurrentBuild": "17763"})
    if pending:
        root.at("Microsoft\\Windows\\CurrentVersion\\Component Based Servicing\\RebootPending")
    return root


def boot_configuration() -> Key:
    """Return a BCD."""
    root = Key()
    root.at("Objects\\{9dea862c-5cdd-4e70-acc1-f32b344d4795}\\Description").values["Type"] = 0x10100002
    return root


GOOD = {**dict.fromkeys(BOOT_DRIVERS, 0), "viostor": 0, "netkvm": 3, "Tcpip": 1}


def files(
    services: Mapping[str, int] | None = None, drivers: tuple[str, ...] | None = None, **more: bytes | None
) -> dict[str, bytes]:
    """Return the files of a Windows; ``more`` adds to them by path, None takes one away."""
    services = GOOD if services is None else services
    found: dict[str, bytes | None] = {
        "/Windows/System32/ntoskrnl.exe": b"MZ",
        "/Windows/System32/config/SYSTEM": hive(system(services)),
        "/Windows/System32/config/SOFTWARE": hive(software()),
        "/Boot/BCD": hive(boot_configuration()),
        **{f"/Windows/System32/drivers/{name}.sys": b"MZ" for name in (services if drivers is None else drivers)},
        **more,
    }
    return {path: data for path, data in found.items() if data is not None}


def disk(path: Path, content: Mapping[str, bytes], *, dirty: bool = False) -> Path:
    """Make a disk with one NTFS partition that holds ``content``."""
    _table(path, SIZE, kind=7)
    with looped(path) as device:
        tool("mkntfs", "-q", "-F", "-f", "-p", str(START // 512), "-H", "255", "-S", "63", device)
    with mounted(path) as root:
        for name, data in content.items():
            place = root / name.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    if dirty:
        _make_dirty(path)
    return path


@contextmanager
def looped(path: Path) -> Iterator[str]:
    """Show the partition as a device."""
    place = ["--offset", str(START), "--sizelimit", str(SIZE - START)]
    device = tool("losetup", "--find", "--show", *place, path).decode().strip()
    try:
        yield device
    finally:
        tool("losetup", "-d", device)


@contextmanager
def mounted(path: Path) -> Iterator[Path]:
    """Mount the partition."""
    with tempfile.TemporaryDirectory() as folder, looped(path) as device:
        tool("ntfs-3g", "-o", "rw", device, folder)
        try:
            yield Path(folder)
        finally:
            tool("umount", folder)


def read(path: Path, name: str) -> bytes | None:
    """Return a file, None if there is none."""
    with mounted(path) as root:
        place = root / name.lstrip("/")
        return place.read_bytes() if place.exists() else None


def _make_dirty(path: Path) -> None:
    """Set the flag in $VOLUME_INFORMATION of $Volume, in the table of files and in its mirror."""
    with path.open("r+b") as raw:
        raw.seek(START)
        sector = raw.read(512)
        cluster = 512 * sector[13]
        for place in (48, 56):
            at = START + struct.unpack_from("<Q", sector, place)[0] * cluster + 3 * 1024
            raw.seek(at)
            record = bytearray(raw.read(1024))
            attribute = struct.unpack_from("<H", record, 20)[0]
            while (kind := struct.unpack_from("<I", record, attribute)[0]) != 0xFFFFFFFF:
                if kind == 0x70:
                    flags = attribute + struct.unpack_from("<H", record, attribute + 20)[0] + 10
                    record[flags] |= 1
                attribute += struct.unpack_from("<I", record, attribute + 4)[0]
            raw.seek(at)
            raw.write(record)


def can() -> str:
    """Return why this machine cannot make such disks, empty if it can."""
    try:
        changed(hive(Key()), [Setting("a", "b", 1)])
        subprocess.run(["mkntfs", "--version"], capture_output=True, check=True)
    except OSError as error:
        return str(error)
    return ""

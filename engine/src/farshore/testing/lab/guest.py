"""The laboratory's guest: a small Linux that boots itself, built from Debian packages without loop devices or mounts.

One system image; the file ``/etc/farshore-lab.conf`` on its second partition gives it a role:

``db``
    system disk and data disk; appends a row a second to a journal on the data disk, each row on disk before the next.
    The sequence is written to the system disk first, so that copies of the two disks of different instants show.
``web``
    system disk only; asks the database at each request. Finds it at host part .11 of its own network.

Both answer HTTP on port 8080: ``/`` for people, ``/cgi-bin/status`` with ``"status":"ok"`` for probes; the database
takes ``/cgi-bin/insert?value=``, which answers once the row is on disk. ACPI power button: stops in order. A
small guest agent freezes the file systems. An address in ``/etc/network/interfaces`` there is taken instead of DHCP's.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import random
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from farshore.errors import Permanent
from farshore.testing.lab import command

Role = Literal["db", "web"]
MIB: Final = 1 << 20
SECTOR: Final = 512

KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
BOOT_OFFSET: Final = 1 * MIB
BOOT_BYTES: Final = 40 * MIB  # FAT: kernel (14 MiB), initial file system, boot loader
SYSTEM_OFFSET: Final = BOOT_OFFSET + BOOT_BYTES
SYSTEM_DISK_BYTES: Final = 128 * MIB
DATA_DISK_BYTES: Final = 512 * MIB
TABLE_BYTES: Final = 64 * MIB  # 16,384 pages of 4 KiB, as common.sh says

_FILES: Final = Path(__file__).parent / "guestfiles"
_SCRIPTS: Final = ("agent.sh", "cgi.sh", "common.sh", "power.sh", "start.sh", "stop.sh", "udhcpc.sh", "work.sh")
_MODULES: Final = (
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/char/virtio_console.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "drivers/acpi/button.ko",
    "drivers/input/evdev.ko",
)
# One line a service; BusyBox init runs sysinit to its end, then keeps the others alive.
_INITTAB: Final = "::sysinit:/etc/start.sh\n::respawn:/etc/work.sh\n::respawn:/etc/power.sh\n::respawn:/etc/agent.sh\n"
# tty0 too, so that a screenshot shows the banner. The rest saves seconds of emulation.
_APPEND: Final = (
    "console=tty0 console=ttyS0,115200 quiet loglevel=3 panic=10 mitigations=off nokaslr "
    "no_timer_check tsc=reliable random.trust_cpu=on cryptomgr.notests net.ifnames=0"
)
_BOOT_MENU: Final = f"""\
SERIAL 0 115200
DEFAULT lab
PROMPT 0
TIMEOUT 1
LABEL lab
 KERNEL vmlinuz
 INITRD initrd
 APPEND {_APPEND}
"""
# Old enough on-disk formats that the boot loader, e2fsprogs and the kernel of any Debian read them.
_EXT4: Final = (
    "-t",
    "ext4",
    "-O",
    "^metadata_csum,^64bit",
    "-J",
    "size=4",
    "-m",
    "0",
    "-E",
    "lazy_itable_init=0,lazy_journal_init=0",
)
_TOOLS: Final = ("busybox", "dpkg-deb", "mcopy", "mformat", "mke2fs", "qemu-img", "syslinux")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Image:
    """Built disks, qcow2, read-only by convention: copy before use."""

    key: str
    system: dict[Role, Path]
    data: Path


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Hold the cache alone: one builder and one prober at a time on a machine."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build(cache: Path, progress: Progress = lambda _line: None) -> Image:
    """Return the guest's disks, built into ``cache`` unless they are there already.

    The key is a hash of every input. The rename of the finished folder is the commit point: a build that was cut short
    leaves a ``*.building`` folder that the next one removes.
    """
    command.require(_TOOLS)
    with locked(cache):
        for left in [*cache.glob("guest/*.building"), *cache.glob("kernel/*.building")]:
            shutil.rmtree(left)
        kernel = _kernel(cache, progress)
        key = _key(kernel)
        final = cache / "guest" / key
        if not final.is_dir():
            progress(f"building the guest ({DATA_DISK_BYTES // MIB} MiB data disk) into {final}")
            work = final.with_name(f"{key}.building")
            work.mkdir(parents=True)
            _build(work, kernel)
            work.rename(final)
    return Image(key, {"db": final / "system-db.qcow2", "web": final / "system-web.qcow2"}, final / "data-db.qcow2")


def _key(kernel: Path) -> str:
    digest = hashlib.sha256()
    inputs = [Path(__file__), *(_FILES / name for name in _SCRIPTS), _busybox(), kernel / "vmlinuz"]
    for path in inputs:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _busybox() -> Path:
    found = command.which("busybox")
    if found is None:
        command.require(["busybox"])
    path = Path(str(found)).resolve()
    if not _is_static(path):
        raise Permanent(
            f"{path} is not a static BusyBox", code="missing-tool", hint="As root: apt-get install busybox-static"
        )
    return path


def _is_static(path: Path) -> bool:
    """Tell whether the 64-bit ELF file at ``path`` has no interpreter (PT_INTERP, type 3)."""
    data = path.read_bytes()
    if data[:5] != b"\x7fELF\x02":
        return False
    table, entry_bytes, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    return all(struct.unpack_from("<I", data, table + i * entry_bytes)[0] != 3 for i in range(count))


def _kernel(cache: Path, progress: Progress) -> Path:
    """Return a folder with ``vmlinuz`` and the modules, taken from Debian's package; downloads at most once."""
    wanted = hashlib.sha256("\n".join(_MODULES).encode()).hexdigest()[:8]
    kept = sorted((path for path in cache.glob("kernel/*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
    ready = [path for path in kept if path.name.endswith(f"-{wanted}")]
    if ready:
        return ready[-1]
    listed = command.run(["apt-cache", "depends", "--important", KERNEL_PACKAGE])
    names = re.findall(r"Depends: (linux-image-\S+)", listed)
    if not names:
        raise Permanent(
            f"apt does not know {KERNEL_PACKAGE}",
            code="missing-package",
            hint="The laboratory needs Debian 12 for amd64 with its package lists: apt-get update",
        )
    name = names[0]
    progress(f"downloading {name}")
    work = cache / "kernel" / f"{name}.building"
    work.mkdir(parents=True)
    try:
        # The sandbox user cannot write into a private folder; the download is checked by apt all the same.
        command.run(["apt-get", "-o", "APT::Sandbox::User=root", "download", name], cwd=work, timeout_s=600)
    except Permanent as error:
        if kept:  # taken with fewer modules: what they are for is missing, the rest works
            progress(f"{name} could not be fetched; going on with {kept[-1].name}")
            shutil.rmtree(work)
            return kept[-1]
        error.hint = "apt could not fetch the kernel package; refresh its lists with: apt-get update"
        raise
    [package] = work.glob("*.deb")
    tree = work / "tree"
    command.run(["dpkg-deb", "-x", package, tree])
    [image] = (tree / "boot").glob("vmlinuz-*")
    [release] = (tree / "lib" / "modules").iterdir()
    image.rename(work / "vmlinuz")
    (work / "modules").mkdir()
    for module in _MODULES:
        found = release / "kernel" / module
        if found.exists():  # one that is missing is built into this kernel
            found.rename(work / "modules" / found.name)
    shutil.rmtree(tree)
    final = cache / "kernel" / f"{package.stem}-{wanted}"
    package.unlink()
    work.rename(final)
    return final


def _build(work: Path, kernel: Path) -> None:
    (work / "initrd").write_bytes(gzip.compress(_initial_file_system(kernel), compresslevel=6, mtime=0))
    for role in ("db", "web"):
        raw = work / f"system-{role}.raw"
        _system_disk(raw, role, work, kernel)
        _to_qcow2(raw)
    data = work / "data-db.raw"
    _data_disk(data, work)
    _to_qcow2(data)
    (work / "initrd").unlink()


def _initial_file_system(kernel: Path) -> bytes:
    """Return a cpio archive (newc): BusyBox with its applets, the modules and the scripts."""
    archive = _Cpio()
    for folder in ("bin", "dev", "etc", "lib", "lib/modules", "proc", "sys", "run", "srv", "system", "data", "tmp"):
        archive.folder(folder)
    busybox = _busybox()
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in command.run([busybox, "--list"]).split():
        if applet != "busybox":
            archive.link(f"bin/{applet}", "busybox")
    archive.link("init", "bin/busybox")
    archive.file("etc/inittab", _INITTAB.encode(), 0o644)
    for script in _SCRIPTS:
        archive.file(f"etc/{script}", (_FILES / script).read_bytes(), 0o755)
    for module in sorted((kernel / "modules").iterdir()):
        archive.file(f"lib/modules/{module.name}", module.read_bytes(), 0o644)
    return archive.end()


class _Cpio:
    """Writer of the "newc" format (cpio(5)): a header of 13 hex fields, then name and data, each padded to 4 bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self._inode += 1
        label = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(label), 0)
        head = b"070701" + b"".join(b"%08X" % value for value in fields) + label
        self._parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]

    def folder(self, name: str) -> None:
        self._entry(name, 0o040755, b"")

    def file(self, name: str, data: bytes, permissions: int) -> None:
        self._entry(name, 0o100000 | permissions, data)

    def link(self, name: str, target: str) -> None:
        self._entry(name, 0o120777, target.encode())

    def end(self) -> bytes:
        self._entry("TRAILER!!!", 0, b"")
        return b"".join(self._parts)


def _system_disk(path: Path, role: str, work: Path, kernel: Path) -> None:
    """Partition 1: FAT with SYSLINUX, kernel and initial file system. Partition 2: ext4 with the role and its state."""
    system_bytes = SYSTEM_DISK_BYTES - SYSTEM_OFFSET
    with path.open("wb") as disk:
        disk.truncate(SYSTEM_DISK_BYTES)
        disk.write(command.MASTER_BOOT_RECORD.read_bytes().ljust(440, b"\0")[:440])
        disk.write(struct.pack("<IH", 0x6661726C if role == "db" else 0x6661726D, 0))
        disk.write(_partition(0x80, 0x0E, BOOT_OFFSET, BOOT_BYTES) + _partition(0, 0x83, SYSTEM_OFFSET, system_bytes))
        disk.write(bytes(32) + b"\x55\xaa")
    boot = f"{path}@@{BOOT_OFFSET}"
    quiet = {"MTOOLS_SKIP_CHECK": "1"}
    # Hidden sectors (-H) tell the boot sector where on the disk its partition begins.
    geometry = ["-T", str(BOOT_BYTES // SECTOR), "-h", "255", "-s", "63", "-H", str(BOOT_OFFSET // SECTOR)]
    command.run(["mformat", "-i", boot, *geometry, "-v", "FARSHORE", "::"], env=quiet)
    menu = work / "syslinux.cfg"
    menu.write_text(_BOOT_MENU)
    for source, name in ((kernel / "vmlinuz", "vmlinuz"), (work / "initrd", "initrd"), (menu, "syslinux.cfg")):
        command.run(["mcopy", "-i", boot, source, f"::{name}"], env=quiet)
    command.run(["syslinux", "--install", "--offset", str(BOOT_OFFSET), path])
    menu.unlink()

    tree = work / "tree"
    for folder in ("etc", "var"):
        (tree / folder).mkdir(parents=True)
    (tree / "etc" / "farshore-lab.conf").write_text(f"role={role}\n")
    (tree / "etc" / "os-release").write_text('NAME="Farshore laboratory"\nID=farshore-lab\n')
    (tree / "var" / "head").write_text("0000000000\n")
    options = [*_EXT4[:-1], f"{_EXT4[-1]},offset={SYSTEM_OFFSET}"]
    command.run(["mke2fs", "-q", *options, "-L", "system", "-d", tree, path, f"{system_bytes // 1024}k"])
    shutil.rmtree(tree)


def _partition(flag: int, kind: int, offset: int, length: int) -> bytes:
    """One entry of the partition table; the old cylinder fields say "use the sector numbers"."""
    beyond = b"\xfe\xff\xff"
    place = struct.pack("<II", offset // SECTOR, length // SECTOR)
    return bytes([flag]) + beyond + bytes([kind]) + beyond + place


def _data_disk(path: Path, work: Path) -> None:
    """ext4 on the whole disk: an empty journal and a table of pages that look like data, not like zeros."""
    tree = work / "tree"
    tree.mkdir()
    (tree / "journal.txt").touch()
    # A fixed seed: the same inputs give the same table, and nobody mistakes it for a secret.
    (tree / "table.dat").write_bytes(random.Random(20_231_122).randbytes(TABLE_BYTES))  # noqa: S311
    with path.open("wb") as disk:
        disk.truncate(DATA_DISK_BYTES)
    command.run(["mke2fs", "-q", *_EXT4, "-L", "data", "-d", tree, path])
    shutil.rmtree(tree)


def _to_qcow2(raw: Path) -> None:
    command.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, raw.with_suffix(".qcow2")])
    raw.unlink()

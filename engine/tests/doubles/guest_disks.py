"""Disks of guests that were never installed: a partition table, a file system, and the files that a check looks at."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from farshore.model.guest import GuestDisk, GuestNic, GuestPolicy, MachinePrepareParams, MachinePrepareResult
from farshore.recovery.guest.prepare import prepare
from farshore.recovery.guest.volumes import RawDisk

MIB = 1 << 20
START = MIB
ROOT_UUID = "11112222-3333-4444-5555-666677778888"
MAC = "52:54:00:aa:bb:01"
VERSION = "6.1.0-13-amd64"
#: Modules that an initial file system has by Debian's MODULES=most.
MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ahci", "nvme")


def tool(*argv: str | Path, given: bytes = b"") -> bytes:
    """Run a tool."""
    env = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    return subprocess.run([*map(str, argv)], input=given, capture_output=True, check=True, env=env).stdout


def initramfs(modules: tuple[str, ...] = MODULES) -> bytes:
    """Return an initial file system with these modules: an early archive, then a compressed one."""
    early = cpio({"kernel/x86/microcode/GenuineIntel.bin": b"\0" * 32})
    folder = f"usr/lib/modules/{VERSION}/kernel/drivers"
    main = cpio({f"{folder}/{name.replace('_', '-')}.ko.xz": b"" for name in modules} or {f"{folder}/none": b""})
    return early + gzip.compress(main, mtime=0)


def cpio(files: Mapping[str, bytes], mode: int = 0o644) -> bytes:
    """Return an archive of ``files`` and the folders that they are in."""
    archive = bytearray()
    split = [name.split("/") for name in files]
    folders = sorted({"/".join(parts[:depth]) for parts in split for depth in range(1, len(parts))})
    entries = [(name, b"", 0o40755) for name in folders] + [
        (name, data, 0o100000 | mode) for name, data in files.items()
    ]
    for number, (name, data, kind) in enumerate([*entries, ("TRAILER!!!", b"", 0)], 1):
        label = name.encode() + b"\0"
        fields = (number, kind, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(label), 0)
        archive += b"070701" + b"".join(b"%08X" % value for value in fields) + label
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def linux(**more: bytes | str | None) -> dict[str, bytes]:
    """Return the files of a Linux; ``more`` adds to them by path, with ``None`` takes one away."""
    modules = f"/lib/modules/{VERSION}"
    files: dict[str, bytes | str | None] = {
        "/etc/os-release": 'NAME="Debian GNU/Linux"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        "/etc/fstab": f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n",
        "/etc/hostname": "shop\n",
        "/etc/hosts": "127.0.0.1 localhost\n127.0.1.1 shop.example.org shop\n10.1.1.5 shop-db\n",
        f"/boot/vmlinuz-{VERSION}": b"kernel",
        f"/boot/initrd.img-{VERSION}": initramfs(),
        f"/boot/config-{VERSION}": "CONFIG_EXT4_FS=m\n",
        "/boot/grub/grub.cfg": f"linux /boot/vmlinuz-{VERSION} root=UUID={ROOT_UUID} ro quiet\n",
        f"{modules}/modules.dep": "kernel/drivers/net/virtio_net.ko.xz: kernel/net/core/failover.ko\n",
        f"{modules}/modules.builtin": "kernel/fs/exportfs/exportfs.ko\n",
        **more,
    }
    return {path: data.encode() if isinstance(data, str) else data for path, data in files.items() if data is not None}


def ext4_disk(path: Path, files: Mapping[str, bytes], *, size: int = 48 * MIB, boot_code: bool = True) -> Path:
    """Make a disk with one ext4 partition that holds ``files``."""
    _table(path, size, boot_code=boot_code)
    with tempfile.TemporaryDirectory() as folder:
        _spread(Path(folder), files)
        kib = (size - START) // 1024
        options = ["-q", "-t", "ext4", "-U", ROOT_UUID, "-E", f"offset={START},root_owner=0:0", "-d", folder]
        tool("mke2fs", *options, path, f"{kib}k")
    return path


def btrfs_disk(path: Path, files: Mapping[str, bytes], size: int = 128 * MIB) -> Path:
    """Make a disk with one btrfs partition that holds ``files``."""
    _table(path, size)
    with tempfile.TemporaryDirectory() as folder:
        _spread(Path(folder) / "files", files)
        image = Path(folder) / "image"
        with image.open("wb") as disk:
            disk.truncate(size - START)
        tool("mkfs.btrfs", "-q", "-U", ROOT_UUID, "--rootdir", Path(folder) / "files", image)
        tool("dd", f"if={image}", f"of={path}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
    return path


def xfs_disk(path: Path, files: Mapping[str, bytes], size: int = 320 * MIB) -> Path:
    """Make a disk with one XFS partition that holds ``files``."""
    _table(path, size)
    with tempfile.TemporaryDirectory() as folder:
        spread = Path(folder) / "files"
        _spread(spread, files)
        prototype = Path(folder) / "prototype"
        prototype.write_text("/\n0 0\nd--755 0 0\n" + _prototype(spread) + "$\n")
        image = Path(folder) / "image"
        with image.open("wb") as disk:
            disk.truncate(size - START)
        tool("mkfs.xfs", "-q", "-m", f"uuid={ROOT_UUID}", "-p", prototype, image)
        tool("dd", f"if={image}", f"of={path}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
    return path


def _prototype(folder: Path) -> str:
    """Return what ``mkfs.xfs -p`` makes of a folder (mkfs.xfs(8))."""
    lines = ""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            lines += f"{entry.name} d--755 0 0\n{_prototype(entry)}$\n"
        else:
            lines += f"{entry.name} ---644 0 0 {entry}\n"
    return lines


#: Volume groups ``shop`` on physical volumes of 96 MiB whose heads in ``lvm2`` were made by lvm2 2.03.16 (pvcreate,
#: vgcreate, lvcreate and lvextend on loop devices): where its volume ``root`` lies, in extents: (disk, first, number).
GROUPS = {"one": [(1, 0, 12)], "pieces": [(1, 0, 10), (1, 12, 2)], "two": [(1, 0, 23), (2, 0, 7)]}
EXTENT = 4 * MIB


def lvm_disks(folder: Path, group: str, files: Mapping[str, bytes]) -> list[Path]:
    """Make the disks of a volume group, one partition each; its volume ``root`` is an ext4 that holds ``files``."""
    pieces = GROUPS[group]
    disks = []
    for number in sorted({disk for disk, *_ in pieces}):
        path = folder / f"{group}-{number}.raw"
        _table(path, START + 96 * MIB, kind=0x8E)
        with path.open("r+b") as disk:
            disk.seek(START)
            disk.write(gzip.decompress((Path(__file__).parent / "lvm2" / f"{group}-{number}.gz").read_bytes()))
        disks.append(path)
    with tempfile.TemporaryDirectory() as place:
        spread, image = Path(place) / "files", Path(place) / "image"
        _spread(spread, files)
        size = sum(extents for *_, extents in pieces) * EXTENT
        tool(
            "mke2fs", "-q", "-t", "ext4", "-U", ROOT_UUID, "-E", "root_owner=0:0", "-d", spread, image, f"{size >> 10}k"
        )
        with image.open("rb") as content:
            for number, extent, extents in pieces:
                with disks[number - 1].open("r+b") as disk:
                    disk.seek(START + MIB + extent * EXTENT)
                    disk.write(content.read(extents * EXTENT))
    return disks


def fat_disk(path: Path, files: Mapping[str, bytes], size: int = 34 * MIB) -> Path:
    """Make a disk with one FAT partition that holds ``files``."""
    _table(path, size, kind=0x0C)
    image = f"{path}@@{START}"
    tool("mformat", "-i", image, "-T", str((size - START) // 512), "-h", "255", "-s", "63", "::")
    made: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            parts = name.strip("/").split("/")
            for depth in range(1, len(parts)):
                place = "/".join(parts[:depth])
                if place not in made:
                    tool("mmd", "-i", image, f"::/{place}")
                    made.add(place)
            source = Path(folder) / "file"
            source.write_bytes(data)
            tool("mcopy", "-i", image, source, f"::{name}")
    return path


def headed_disk(path: Path, head: bytes, size: int = 8 * MIB) -> Path:
    """Make a disk with one partition that begins with ``head`` and holds nothing else."""
    _table(path, size)
    with path.open("r+b") as disk:
        disk.seek(START)
        disk.write(head)
    return path


def _table(path: Path, size: int, *, kind: int = 0x83, boot_code: bool = True) -> None:
    entry = bytes([0x80, 0xFE, 0xFF, 0xFF, kind, 0xFE, 0xFF, 0xFF])
    entry += (START // 512).to_bytes(4, "little") + ((size - START) // 512).to_bytes(4, "little")
    with path.open("wb") as disk:
        disk.truncate(size)
        code = b"\xfa\x33\xc0" if boot_code else b""
        disk.write(code.ljust(440, b"\0") + b"\x78\x56\x34\x12\0\0" + entry + bytes(48) + b"\x55\xaa")


def _spread(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read(disk: Path, path: str) -> bytes | None:
    """Return a file of an ext4 disk as debugfs sees it, None if there is none."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "file"
        tool("debugfs", "-R", f'dump "{path}" {into}', f"{disk}?offset={START}")
        return into.read_bytes() if into.exists() else None


def features(disk: Path) -> str:
    """Return the features of an ext4 disk's file system."""
    return tool("debugfs", "-R", "features", f"{disk}?offset={START}").decode()


def sound(disk: Path, start: int = START) -> bool:
    """Say whether the file system that begins at ``start`` is without fault."""
    done = subprocess.run(["e2fsck", "-fn", f"{disk}?offset={start}"], capture_output=True, check=False)
    return done.returncode == 0


def job(
    purpose: str = "failover", bus: str = "virtio", policy: GuestPolicy | None = None, **more: object
) -> MachinePrepareParams:
    """Return what is asked of a machine with one disk and one interface."""
    nic = {"mac": MAC, "source_mac": MAC, **dict(more.pop("nic", {}))}  # type: ignore[call-overload]
    return MachinePrepareParams.model_validate(
        {
            "machine_id": "m-1",
            "name": "shop",
            "purpose": purpose,
            "disks": [GuestDisk(disk_id="vda", bus=bus, boot=True)],
            "nics": [GuestNic.model_validate(nic)],
            "policy": policy or GuestPolicy(),
            **more,
        }
    )


def run(params: MachinePrepareParams, *disks: Path) -> MachinePrepareResult:
    """Prepare a guest whose disks are these files, the first one to start from."""
    return prepare(
        params, [RawDisk(f"vd{letter}", path, letter == "a") for letter, path in zip("abc", disks, strict=False)]
    )


def codes(result: MachinePrepareResult) -> dict[str, str]:
    """Return the findings as code and severity."""
    return {finding.code: finding.severity for finding in result.findings}


def missing(*tools: str) -> list[str]:
    """Return those of ``tools`` that this machine lacks."""
    return [name for name in tools if shutil.which(name) is None]

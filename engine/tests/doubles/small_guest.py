"""A small guest with drivers as modules, as distributions have them: what its initramfs has not, it cannot start from.

Its kernel is the laboratory's; its initramfs finds modules by what the hardware calls itself, as udev does. It goes off
by itself, and its console says how far it came. Any guest's own kernel and initramfs are started by :func:`boot`.
"""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from doubles.guest_disks import ROOT_UUID, START, cpio, ext4_disk, linux, tool
from farshore.testing.lab import guest

UP = "the guest is up"
LOST = "the guest has no root"
_INIT = f"""#!/bin/busybox sh
/bin/busybox --install /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for time in 1 2; do
    find /sys/devices -name modalias -exec cat {{}} + | sort -u | xargs modprobe -a -q
    disk=$(findfs UUID={ROOT_UUID}) && break
    sleep 1
done
[ "$disk" ] && mount -t ext4 -o ro "$disk" /root && exec switch_root /root /sbin/init
echo "{LOST}" > /dev/console
poweroff -f
"""
_SYSTEM = f"""#!/bin/busybox sh
/bin/busybox echo "{UP}"
/bin/busybox poweroff -f
"""
_ALIASES = "alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\nalias virtio:d00000002v* virtio_blk\n"


def make(disk: Path, cache: Path) -> str:
    """Make the guest's disk, with an initramfs that has no module, and return its kernel's version."""
    guest.build(cache)
    kernels = [path for path in cache.glob("kernel/linux-image-*") if (path / "modules/virtio_blk.ko").exists()]
    kernel = max(kernels, key=lambda path: path.stat().st_mtime)
    version = kernel.name.removeprefix("linux-image-").partition("_")[0]
    busybox = Path("/bin/busybox").read_bytes()
    modules = {path.stem: path.read_bytes() for path in (kernel / "modules").iterdir()}
    base = f"/lib/modules/{version}"
    few = {
        "init": _INIT.encode(),
        "bin/busybox": busybox,
        f"lib/modules/{version}/modules.dep": b"",
        **{f"{name}/.keep": b"" for name in ("proc", "sys", "dev", "root")},
    }
    files: dict[str, bytes | str | None] = {
        **{f"{base}/kernel/{name}.ko": data for name, data in modules.items()},
        f"{base}/modules.dep": "".join(f"{_dependencies(name, modules)}\n" for name in modules),
        f"{base}/modules.alias": _ALIASES,
        f"{base}/modules.builtin": "kernel/fs/ext4/ext4.ko\n",
        f"/boot/vmlinuz-{version}": (kernel / "vmlinuz").read_bytes(),
        f"/boot/initrd.img-{version}": gzip.compress(cpio(few, 0o755), mtime=0),
        "/bin/busybox": busybox,
        "/sbin/init": _SYSTEM,
    }
    kept = {name: data for name, data in linux().items() if not name.startswith(("/boot/vml", "/boot/init", "/lib/"))}
    whole = {**kept, **{name: data.encode() if isinstance(data, str) else data or b"" for name, data in files.items()}}
    ext4_disk(disk, whole, size=96 << 20)
    for name in ("/bin/busybox", "/sbin/init"):
        tool("debugfs", "-w", "-R", f"sif {name} mode 0100755", f"{disk}?offset={START}")
    return version


def _dependencies(name: str, modules: dict[str, bytes]) -> str:
    """Return a line of modules.dep: a module and all that it needs, what is loaded first at the end (depmod(8))."""
    found: list[str] = []

    def visit(one: str) -> None:
        needs = re.search(rb"\0depends=([^\0]*)\0", modules[one])
        for other in needs[1].decode().split(",") if needs else []:
            if other in modules and other not in found:
                visit(other)
        found.append(one)

    visit(name)
    return f"kernel/{name}.ko:" + "".join(f" kernel/{other}.ko" for other in reversed(found[:-1]))


def boot(disk: Path, version: str, device: str, append: str, folder: Path, marks: Sequence[str]) -> str:
    """Start a guest's newest kernel with its initramfs, as its boot loader would; return its console's text.

    It ends when the guest goes off or restarts, or has said one of ``marks``.
    """
    words = ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-cpu", "max", "-m", "512", "-display", "none"]
    for option, name in (("-kernel", f"vmlinuz-{version}"), ("-initrd", f"initrd.img-{version}")):
        (folder / name).unlink(missing_ok=True)
        tool("debugfs", "-R", f"dump /boot/{name} {folder / name}", f"{disk}?offset={START}")
        words += [option, str(folder / name)]
    words += ["-append", f"root=UUID={ROOT_UUID} ro console=ttyS0,115200 panic=-1 {append}"]
    words += ["-drive", f"file={disk},format=raw,if=none,id=disk,snapshot=on", "-device", f"{device},drive=disk"]
    words += ["-nodefaults", "-no-reboot", "-serial", "stdio"]
    said = []
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace") as run:
        assert run.stdout is not None
        try:
            for line in run.stdout:
                said.append(line)
                if any(mark in line for mark in marks):
                    break
        finally:
            run.kill()
    return "".join(said)

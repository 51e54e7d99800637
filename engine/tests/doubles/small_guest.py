"""A small guest with drivers as modules, as distributions have them: what its initramfs has not, it cannot start from.

Its kernel is the laboratory's; its initramfs finds modules by what the hardware calls itself, as udev does. It goes off
by itself, and its console says how far it came. Any guest's own kernel and initramfs are started by :func:`boot`.
"""

from __future__ import annotations

import gzip
import re
import subprocess
import tempfile
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
modprobe -a -q $(cat /etc/modules)
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
_ALIASES = (
    "alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\nalias virtio:d00000002v* virtio_blk\n"
    "alias pci:v*d*sv*sd*bc01sc08i02* nvme\n"
)
#: A distribution's kernel for any machine, in which hardly anything is built in, and what a small guest needs of it.
_ANY_PACKAGE = "linux-image-amd64"
_ANY = {
    *("virtio", "virtio_ring", "virtio_pci", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_blk"),
    *("nvme", "nvme-core", "t10-pi", "crc-t10dif", "crct10dif_common", "crc64", "crc64-rocksoft"),
    *("ext4", "jbd2", "mbcache", "crc16", "crc32c_generic", "libcrc32c"),
}


def laboratorys(cache: Path) -> Path:
    """Return a folder with the laboratory's kernel and modules."""
    guest.build(cache)
    kernels = [path for path in cache.glob("kernel/linux-image-*") if (path / "modules/virtio_blk.ko").exists()]
    return max(kernels, key=lambda path: path.stat().st_mtime)


def anybodys(cache: Path) -> Path:
    """Return a folder with a kernel and modules for any machine, from Debian's package; downloaded once."""
    [name] = re.findall(
        r"Depends: (linux-image-\S+)", tool("apt-cache", "depends", "--important", _ANY_PACKAGE).decode()
    )
    folder = cache / "any" / name
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as text:
        work = Path(text)
        # The sandbox user cannot write into a private folder; the download is checked by apt all the same.
        options = ["-q", "-o", "APT::Sandbox::User=root"]
        subprocess.run(["apt-get", *options, "download", name], cwd=work, check=True, stdout=subprocess.DEVNULL)
        [package] = work.glob("*.deb")
        tool("dpkg-deb", "-x", package, work / "tree")
        made = work / name
        (made / "modules").mkdir(parents=True)
        [image] = (work / "tree/boot").glob("vmlinuz-*")
        image.rename(made / "vmlinuz")
        for module in (work / "tree/lib/modules").rglob("*.ko"):
            if module.stem in _ANY:
                module.rename(made / "modules" / module.name)
        folder.parent.mkdir(exist_ok=True)
        made.rename(folder)
    return folder


def make(disk: Path, kernel: Path, has: Sequence[str] = ()) -> str:
    """Make the guest's disk, and return its kernel's version. Its initramfs has the modules ``has`` and no others."""
    version = kernel.name.removeprefix("linux-image-").partition("_")[0]
    busybox = Path("/bin/busybox").read_bytes()
    modules = {path.stem: path.read_bytes() for path in (kernel / "modules").iterdir()}
    early = sorted({one for name in has for one in _needed(name, modules)})
    base = f"/lib/modules/{version}"
    few = {
        "init": _INIT.encode(),
        "bin/busybox": busybox,
        f"lib/modules/{version}/modules.dep": "".join(f"{_dependencies(name, modules)}\n" for name in early).encode(),
        **{f"lib/modules/{version}/kernel/{name}.ko": modules[name] for name in early},
        "etc/modules": " ".join(has).encode(),
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
    return f"kernel/{name}.ko:" + "".join(f" kernel/{other}.ko" for other in reversed(_needed(name, modules)[:-1]))


def _needed(name: str, modules: dict[str, bytes]) -> list[str]:
    """Return a module and all that it needs, in the order in which they are loaded."""
    known = {other.replace("-", "_"): other for other in modules}  # the kernel has one name for both
    found: list[str] = []

    def visit(one: str) -> None:
        needs = re.search(rb"\0depends=([^\0]*)\0", modules[one])
        for other in needs[1].decode().split(",") if needs else []:
            at = known.get(other.replace("-", "_"))
            if at is not None and at not in found:
                visit(at)
        found.append(one)

    visit(name)
    return found


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

"""A real Debian as a disk, with its own kernel, initramfs and boot menu: ``python -m doubles.debian_tree``.

Made by debootstrap from Debian's mirror, as root, in some minutes; kept in ``.cache/debian``. That is too long for each
run of the tests, which pass over what needs it where it is not there.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from doubles.guest_disks import MIB, ROOT_UUID, START, _table, tool

DISK = Path(__file__).parents[3] / ".cache/debian/bookworm.raw"
SIZE = 1400 * MIB
PACKAGES = "linux-image-amd64,initramfs-tools,grub-pc,ifupdown,systemd-sysv"
FILES = {
    "etc/fstab": f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n",
    "etc/hostname": "shop\n",
    "etc/network/interfaces": "auto lo\niface lo inet loopback\nallow-hotplug ens3\niface ens3 inet static\n"
    "  address 10.1.1.5/24\n  gateway 10.1.1.1\n",
}
#: What grub-mkconfig asks about disks: in a chroot nobody else could answer as the guest's own boot would.
PROBE = f"""#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in -t) target=$2; shift ;; --target=*) target=${{1#--target=}} ;; esac
    shift
done
case ${{target:-fs}} in
    device | disk) echo /dev/sda1 ;; fs_uuid) echo {ROOT_UUID} ;; fs) echo ext2 ;; partmap) echo msdos ;;
    drive) echo '(hd0,msdos1)' ;; partuuid) echo 12345678-01 ;; compatibility_hint) echo hd0,msdos1 ;;
    hints_string) echo --hint-bios=hd0,msdos1 ;; abstraction | fs_label) ;; *) exit 1 ;;
esac
"""


def make(mirror: str = "http://deb.debian.org/debian") -> Path:
    """Make the disk, unless it is there."""
    if DISK.exists():
        return DISK
    DISK.parent.mkdir(parents=True, exist_ok=True)
    making = DISK.with_suffix(".making")
    with tempfile.TemporaryDirectory(dir=DISK.parent) as folder:
        tree = Path(folder)
        tool("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", tree, mirror)
        for left in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
            shutil.rmtree(tree / left, ignore_errors=True)
        for name, text in FILES.items():
            (tree / name).write_text(text)
        with _answering(tree):
            tool("chroot", tree, "grub-mkconfig", "-o", "/boot/grub/grub.cfg")
        _table(making, SIZE)
        options = ["-q", "-t", "ext4", "-U", ROOT_UUID, "-E", f"offset={START},root_owner=0:0", "-d", tree]
        tool("mke2fs", *options, making, f"{(SIZE - START) // 1024}k")
    making.rename(DISK)
    return DISK


@contextlib.contextmanager
def _answering(tree: Path) -> Iterator[None]:
    """Let the chroot see its processes, and grub-probe answer, until the end of the block."""
    probe = tree / "usr/sbin/grub-probe"
    kept = probe.rename(probe.with_suffix(".kept"))
    probe.write_text(PROBE)
    probe.chmod(0o755)
    tool("mount", "-t", "proc", "proc", tree / "proc")
    try:
        yield
    finally:
        tool("umount", tree / "proc")
        kept.replace(probe)


if __name__ == "__main__":
    make()

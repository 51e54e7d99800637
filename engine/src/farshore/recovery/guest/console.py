"""The serial console of a Linux guest: on EC2 it is the only one that can be read from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from farshore.recovery.guest.guest import Guest
from farshore.recovery.guest.trees import Tree
from farshore.recovery.readdress.record import Record

_SERIAL: Final = "console=ttyS0,115200"
#: Where boot loaders have a kernel's command line: GRUB 2, GRUB 1, SYSLINUX, entries of systemd's specification.
#: GRUB 1 has the kernel's path before its options; SYSLINUX has a path alone, and options in a line of their own.
_LINE: Final = re.compile(
    r"^(?P<head>[ \t]*(?:linux(?:16|efi)?|kernel[ \t]+\S+|append|options)[ \t]+)(?P<rest>\S.*)$", re.IGNORECASE
)
#: What GRUB's own lists are made of: a menu that is made anew has it too.
DEFAULTS: Final = "/etc/default/grub"
_DEFAULT: Final = re.compile(r"^(?P<head>GRUB_CMDLINE_LINUX=)(?P<quote>[\"']?)(?P<rest>.*?)(?P=quote)[ \t]*$")


def apply(guest: Guest, tree: Tree, kept: Record, loaders: Sequence[str]) -> None:
    """Have a kernel write to the serial port on EC2; elsewhere have it write where it did."""
    on = guest.params.platform == "aws"
    for path in [*loaders, DEFAULTS]:
        current = guest.read(tree, path)
        if current is None or (not on and path not in kept.files):
            continue
        original = kept.original(path, current)
        text = (original or b"").decode(errors="surrogateescape")
        made = with_serial(text).encode(errors="surrogateescape") if on else original
        if guest.change(tree, path, made, "console", f"{path}: {_SERIAL if on else 'as it was'}"):
            kept.note(path, original, made)


def with_serial(text: str) -> str:
    """Return a boot loader's configuration whose kernels write to the serial port, last and so first of all."""
    return "\n".join(_line(line) for line in text.split("\n"))


def _line(line: str) -> str:
    found = _LINE.match(line)
    if found is not None:
        return found["head"] + _added(found["rest"])
    defaults = _DEFAULT.match(line)
    if defaults is not None:
        return f'{defaults["head"]}"{_added(defaults["rest"])}"'
    return line


def _added(words: str) -> str:
    if "console=ttyS0" in words:
        return words
    # The screen stays a console where none was named: a picture of it is evidence too.
    return " ".join([words.rstrip(), *([] if "console=" in words else ["console=tty0"]), _SERIAL]).strip()

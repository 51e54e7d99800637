"""cloud-init in a guest that changes platforms: it looks for what is there, and takes no machine for a new one.

A source of data that is not there costs minutes at each start; one that was not there before makes cloud-init give
the machine another name and other SSH keys. https://docs.cloud-init.io/en/latest/reference/base_config_reference.html
"""

from __future__ import annotations

from typing import Final

import yaml

from farshore.recovery.guest.guest import Guest
from farshore.recovery.guest.trees import Tree
from farshore.recovery.readdress.record import Record

DROP_IN: Final = "/etc/cloud/cloud.cfg.d/99-farshore.cfg"
_FOLDER: Final = "/etc/cloud/cloud.cfg.d"
_MAIN: Final = "/etc/cloud/cloud.cfg"
_KEPT: Final = "preserve_hostname: true\nssh_deletekeys: false\n"


def apply(guest: Guest, tree: Tree, kept: Record) -> None:
    """Write what cloud-init is to look for on this platform, or take it away again."""
    made = _wanted(guest.params.platform, tree) if tree.exists(_MAIN) else None
    current = tree.read(DROP_IN)
    if made is None and DROP_IN not in kept.files:
        return
    original = kept.original(DROP_IN, current)
    content = original if made is None else made.encode()
    if guest.change(tree, DROP_IN, content, "cloud-init", (made or "as it was").partition("\n")[0]):
        kept.note(DROP_IN, original, content)


def _wanted(platform: str, tree: Tree) -> str | None:
    sources = _sources(tree)
    if platform == "aws":
        return ("" if sources is None or "Ec2" in sources else "datasource_list: [Ec2, None]\n") + _KEPT
    if sources is not None and set(sources) <= {"Ec2", "None"}:
        return "datasource_list: [NoCloud, None]\n" + _KEPT
    return None


def _sources(tree: Tree) -> list[str] | None:
    """Return the sources that a guest looks for, None if it names none: what is last in order holds."""
    found: list[str] | None = None
    names = [f"{_FOLDER}/{name}" for name in tree.names(_FOLDER) if name.endswith(".cfg")]
    for path in [_MAIN, *(name for name in names if name != DROP_IN)]:
        try:
            document = yaml.safe_load(tree.text(path) or "")
        except yaml.YAMLError:
            continue
        listed = document.get("datasource_list") if isinstance(document, dict) else None
        if isinstance(listed, list):
            found = [str(one) for one in listed]
    return found

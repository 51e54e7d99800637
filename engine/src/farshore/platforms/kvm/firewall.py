"""Rules that close the hypervisor's own addresses to the guests of an isolated network.

libvirt keeps such guests from being forwarded, but they reach every address of the host itself. Probes come from the
host, so replies pass; DHCP passes; all else is dropped. Each rule carries its owner's tag in a comment: the kernel's
table is the record, there is no other.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from farshore.errors import Permanent, Retry

TOOLS: Final = ("iptables", "ip6tables")
_COMMENT: Final = "farshore:"
_REPLIES: Final = ("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED")
_DHCP: Final = ("-p", "udp", "--dport", "67")
_TIMEOUT_S: Final = 60.0


def which(tool: str) -> str | None:
    """Return the path of a tool; system folders are searched although an ordinary PATH may lack them."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin")


def rules(tool: str, bridge: str, tag: str) -> list[list[str]]:
    """Return the rules of one bridge for chain INPUT, first to last."""
    comment = ["-m", "comment", "--comment", f"{_COMMENT}{tag}"]
    passing = [_REPLIES, _DHCP] if tool == "iptables" else [_REPLIES]
    return [["-i", bridge, *match, *comment, "-j", "ACCEPT"] for match in passing] + [
        ["-i", bridge, *comment, "-j", "DROP"]
    ]


def close(bridge: str, tag: str) -> None:
    """Close the host to a bridge, which need not exist yet; nothing to do for rules that are there."""
    for tool in _tools():
        wanted = rules(tool, bridge, tag)
        if all(_run(tool, "-C", "INPUT", *rule, may_fail=True) is not None for rule in wanted):
            continue
        _remove(tool, tag, bridge)
        # Before libvirt's own, which would let DNS through; the last one is put first.
        for rule in reversed(wanted):
            _run(tool, "-I", "INPUT", "1", *rule)


def open_again(tag: str) -> list[str]:
    """Remove all rules of ``tag`` and return them as text."""
    removed = []
    for tool in _tools():
        removed += [f"{tool} {shlex.join(rule)}" for rule in _remove(tool, tag)]
    return removed


def present(tag: str) -> list[str]:
    """Return the rules of ``tag`` as text."""
    return [f"{tool} {shlex.join(rule)}" for tool in _tools() for rule in _list(tool, tag)]


def _tools() -> list[str]:
    # A kernel without IPv6 has no table for it, and no traffic either.
    return list(TOOLS) if Path("/proc/net/if_inet6").exists() else [TOOLS[0]]


def _remove(tool: str, tag: str, bridge: str | None = None) -> list[list[str]]:
    found = [rule for rule in _list(tool, tag) if bridge is None or bridge in rule]
    for rule in found:
        _run(tool, "-D", *rule)
    return found


def _list(tool: str, tag: str) -> Iterator[list[str]]:
    """Yield the rules of ``tag``, each as the words after ``-A``."""
    for line in (_run(tool, "-S", "INPUT") or "").splitlines():
        words = shlex.split(line)
        if words[:1] == ["-A"] and f"{_COMMENT}{tag}" in words:
            yield words[1:]


def _run(tool: str, *words: str, may_fail: bool = False) -> str | None:
    path = which(tool)
    if path is None:
        raise Permanent(f"{tool} is not installed", code="missing-tool", hint="As root: apt-get install iptables")
    try:
        done = subprocess.run(
            [path, "-w", "10", *words],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Retry(f"{tool} did not end", code="firewall") from error
    if done.returncode:
        if may_fail:
            return None
        raise Permanent(
            f"{tool} {shlex.join(words)} failed: {done.stderr.strip()}",
            code="firewall",
            hint="The node has to run as root in the hypervisor's network namespace.",
        )
    return done.stdout

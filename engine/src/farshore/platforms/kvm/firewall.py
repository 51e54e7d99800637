"""Rules that close an isolated network: to the hypervisor's own addresses, and to whatever lies behind it.

libvirt keeps such guests from being forwarded, but they reach every address of the host itself. Probes come from the
host, so replies pass; DHCP passes; all else is dropped, and so is all that would be forwarded in or out, whatever
other rules there are. Behind these rules, in a table that comes after, others count what got past them: nothing should.
Each rule carries its owner's tag in a comment: the kernel's tables are the record, there is no other.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farshore.errors import Permanent, Retry

TOOLS: Final = ("iptables", "ip6tables")
TABLES: Final = ("filter", "security")
_COMMENT: Final = "farshore:"
_REPLIES: Final = ("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED")
_DHCP: Final = ("-p", "udp", "--dport", "67")
_TIMEOUT_S: Final = 60.0
#: Exit status of a tool that did not get the lock, or the kernel's memory.
_BUSY: Final = 4


def which(tool: str) -> str | None:
    """Return the path of a tool; system folders are searched although an ordinary PATH may lack them."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: where it stands, and its words."""

    table: str
    chain: str
    words: tuple[str, ...]


def rules(tool: str, bridge: str, tag: str) -> list[Rule]:
    """Return the rules of one bridge, first to last in each chain."""
    comment = ("-m", "comment", "--comment", f"{_COMMENT}{tag}")
    inside = ("-i", bridge)
    out, into = (*inside, "!", "-o", bridge), ("!", "-i", bridge, "-o", bridge)
    passing = [_REPLIES, _DHCP] if tool == "iptables" else [_REPLIES]
    return [
        *(Rule("filter", "INPUT", (*inside, *match, *comment, "-j", "ACCEPT")) for match in passing),
        Rule("filter", "INPUT", (*inside, *comment, "-j", "DROP")),
        Rule("filter", "FORWARD", (*out, *comment, "-j", "DROP")),
        Rule("filter", "FORWARD", (*into, *comment, "-j", "DROP")),
        # The table `security` is passed after `filter`, by what `filter` let through.
        *(Rule("security", "INPUT", (*inside, *match, *comment, "-j", "RETURN")) for match in passing),
        Rule("security", "INPUT", (*inside, *comment)),
        Rule("security", "FORWARD", (*out, *comment)),
        Rule("security", "FORWARD", (*into, *comment)),
    ]


def close(bridge: str, tag: str) -> None:
    """Close a bridge, which need not exist yet; nothing to do for rules that are there."""
    for tool in _tools():
        wanted = rules(tool, bridge, tag)
        if all(
            _run(tool, "-t", rule.table, "-C", rule.chain, *rule.words, may_fail=True) is not None for rule in wanted
        ):
            continue
        _remove(tool, tag, bridge)
        # Before libvirt's own, which would let DNS through; the last one is put first.
        for rule in reversed(wanted):
            _run(tool, "-t", rule.table, "-I", rule.chain, "1", *rule.words)


def open_again(tag: str) -> list[str]:
    """Remove all rules of ``tag`` and return them as text."""
    return [_text(tool, rule) for tool in _tools() for rule in _remove(tool, tag)]


def present(tag: str) -> list[str]:
    """Return the rules of ``tag`` as text."""
    return [_text(tool, rule) for tool in _tools() for rule in _list(tool, tag)]


def count(bridge: str, tag: str) -> tuple[int, int, int]:
    """Return the packets that got past the rules of a bridge, that these stopped, and that they admitted."""
    outside = stopped = admitted = 0
    for tool in _tools():
        for rule in _list(tool, tag, counted=True):
            if bridge not in rule.words:
                continue
            packets = int(rule.words[rule.words.index("-c") + 1])
            target = rule.words[rule.words.index("-j") + 1] if "-j" in rule.words else ""
            outside += packets if not target else 0
            stopped += packets if target == "DROP" else 0
            admitted += packets if target == "ACCEPT" else 0
    return outside, stopped, admitted


def _tools() -> list[str]:
    # A kernel without IPv6 has no table for it, and no traffic either.
    return list(TOOLS) if Path("/proc/net/if_inet6").exists() else [TOOLS[0]]


def _remove(tool: str, tag: str, bridge: str | None = None) -> list[Rule]:
    found = [rule for rule in _list(tool, tag) if bridge is None or bridge in rule.words]
    for rule in found:
        _run(tool, "-t", rule.table, "-D", rule.chain, *rule.words)
    return found


def _list(tool: str, tag: str, *, counted: bool = False) -> Iterator[Rule]:
    """Yield the rules of ``tag``; ``counted``: with the words ``-c PACKETS BYTES``."""
    for table in TABLES:
        # The second table may not exist before anybody has used it.
        may_fail = table != TABLES[0]
        text = _run(tool, "-t", table, "-S", *(("-v",) if counted else ()), may_fail=may_fail) or ""
        for line in text.splitlines():
            words = shlex.split(line)
            if words[:1] == ["-A"] and f"{_COMMENT}{tag}" in words:
                yield Rule(table, words[1], tuple(words[2:]))


def _text(tool: str, rule: Rule) -> str:
    return f"{tool} {'' if rule.table == 'filter' else f'-t {rule.table} '}{rule.chain} {shlex.join(rule.words)}"


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
        if may_fail and done.returncode != _BUSY:
            return None
        raise Permanent(
            f"{tool} {shlex.join(words)} failed: {done.stderr.strip()}",
            code="firewall",
            hint="The node has to run as root in the hypervisor's network namespace.",
        )
    return done.stdout

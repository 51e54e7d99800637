"""Platform ``kvm``: libvirt and QEMU. Tried with libvirt 9.0 and QEMU 7.2.

Settings (``platform:`` in a node's file):

``uri``
    libvirt's, ``qemu:///system`` by default.
``pool``
    folder of the replicas, the manifests and the disks of recovered machines; one file system.
``scratch``
    folder for records of points, sockets and the scratch files of backup jobs: its path must be short (at most 70
    bytes), its file system local and with room for what guests overwrite while they are read.
``accelerator``
    ``auto`` (KVM where a probe guest has shown that it runs), ``tcg`` or ``kvm``.
``detach_rate``
    bytes per second that the copying of a disk takes at most when a committed machine leaves the chain of checkpoints;
    ``64 MiB/s`` by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from farshore import durable
from farshore.errors import Invalid
from farshore.platforms.contract import Platform
from farshore.platforms.directory import DirectoryManifests
from farshore.platforms.kvm import accelerator, detaching, retiring
from farshore.platforms.kvm.compute import KvmCompute
from farshore.platforms.kvm.connection import Hypervisor
from farshore.platforms.kvm.source import KvmSource
from farshore.platforms.kvm.target import KvmTarget
from farshore.platforms.nbd.launcher import Launcher
from farshore.units import parse_rate

__all__ = ["open_kvm"]


def open_kvm(config: Mapping[str, Any], part: str = "") -> Platform:
    """Open the platform. libvirt need not answer yet: it is connected to at first use.

    ``part``: see :func:`farshore.platforms.registry.open_platform`.

    Raises:
        Invalid: a setting is wrong; ``field`` names it.
        Permanent: the Python binding of libvirt is not installed.
    """
    pool, scratch = (_folder(config, key) for key in ("pool", "scratch"))
    uri = config.get("uri", "qemu:///system")
    if not isinstance(uri, str) or not uri:
        raise Invalid("platform.uri has to be a libvirt URI", code="platform-setting", field="platform.uri")
    chosen = accelerator.choose(config.get("accelerator", "auto"), scratch / "accelerator.json")
    hypervisor = Hypervisor(uri)
    durable.make_dir(scratch, 0o711)
    launcher = Launcher(scratch / f"daemons{part}")
    target = KvmTarget(pool, launcher)
    source = KvmSource(hypervisor, scratch, launcher)
    rate = _rate(config.get("detach_rate", detaching.RATE))
    compute = KvmCompute(hypervisor, target, scratch, chosen, launcher, alone=source.alone, detach_rate=rate)
    return Platform(
        type="kvm",
        source=source,
        traces=source.traces,
        target=target,
        manifests=DirectoryManifests(target.layers.pool / "manifests"),
        inventory=compute.inventory,
        compute=compute,
        adopt=partial(retiring.adopt, hypervisor, target),
        retire=partial(retiring.remove, hypervisor, target, compute),
    )


def _rate(value: Any) -> int:
    try:
        return parse_rate(value)
    except ValueError as error:
        raise Invalid(
            f"platform.detach_rate: {error}", code="platform-setting", field="platform.detach_rate"
        ) from error


def _folder(config: Mapping[str, Any], key: str) -> Path:
    value = config.get(key)
    if not isinstance(value, (str, Path)) or not Path(value).is_absolute():
        raise Invalid(f"platform.{key} has to be an absolute path", code="platform-setting", field=f"platform.{key}")
    return Path(value)

"""rsync, as a daemon in clear text and over SSH; whole files, or deltas where the target has a base."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Final

from benchmarks.links import Place
from benchmarks.peers.base import PORT, Job, Outcome, lacking, serve_and_pull
from benchmarks.processes import ask

_SSHD: Final = "/usr/sbin/sshd"


def _options(job: Job, block_bytes: int | None) -> list[str]:
    """Return the options of a copy: in place, flushed at the end; holes made where the file is new."""
    if not job.incremental:
        return ["--inplace", "--whole-file", "--sparse", "--fsync"]
    block = [f"--block-size={block_bytes}"] if block_bytes else []
    return ["--inplace", "--no-whole-file", "--ignore-times", "--fsync", *block]


class RsyncDaemon:
    """``rsync --daemon``: no encryption."""

    incremental = True

    def __init__(self, block_bytes: int | None = None) -> None:
        self.name = f"rsync daemon, {block_bytes // 1024}K blocks" if block_bytes else "rsync daemon"
        self._block = block_bytes

    def missing(self) -> str | None:
        """Tell whether rsync is there."""
        return lacking("rsync")

    def copy(self, place: Place, job: Job) -> Outcome:
        """Pull from a daemon."""
        conf = job.folder / "rsyncd.conf"
        folder = job.disks[0].source.parent
        conf.write_text(
            f"use chroot = no\nuid = 0\ngid = 0\nlock file = {job.folder}/rsyncd.lock\n"
            f"log file = {job.folder}/rsyncd.log\n[images]\npath = {folder}\nread only = yes\n"
        )
        host = place.address("source")
        return serve_and_pull(
            self.name,
            place,
            job,
            ["rsync", "--daemon", "--no-detach", f"--config={conf}", f"--address={host}", f"--port={PORT}"],
            [
                "rsync",
                *_options(job, self._block),
                *(f"rsync://{host}:{PORT}/images/{disk.source.name}" for disk in job.disks),
                f"{job.folder}/targets/",
            ],
        )


class RsyncSsh:
    """rsync over an SSH server of our own: own keys, own settings, on an address that only this measurement has."""

    name = "rsync ssh"
    incremental = True

    def missing(self) -> str | None:
        """Tell whether rsync and OpenSSH are there."""
        return lacking("rsync", "ssh", "ssh-keygen", _SSHD)

    def copy(self, place: Place, job: Job) -> Outcome:
        """Pull through SSH."""
        host = place.address("source")
        keys = _keys(job.folder / "ssh", host)
        # Without the machine's settings on either side; AES-GCM, which is quicker here than OpenSSH's own choice.
        ssh = (
            f"ssh -F none -T -p {PORT} -i {keys}/user -o IdentitiesOnly=yes -o BatchMode=yes -o ControlPath=none "
            f"-o StrictHostKeyChecking=yes -o UserKnownHostsFile={keys}/known -o GlobalKnownHostsFile=/dev/null "
            f"-o Compression=no -c aes128-gcm@openssh.com"
        )
        return serve_and_pull(
            self.name,
            place,
            job,
            [_SSHD, "-D", "-e", "-f", f"{keys}/sshd_config"],
            [
                "rsync",
                *_options(job, None),
                "-e",
                ssh,
                *(f"{getpass.getuser()}@{host}:{disk.source}" for disk in job.disks),
                f"{job.folder}/targets/",
            ],
        )


def _keys(folder: Path, host: str) -> Path:
    """Make the keys and settings of a server and its only user."""
    if folder.exists():
        return folder
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        ask(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)])
    (folder / "allowed").write_text((folder / "user.pub").read_text())
    words = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[{host}]:{PORT} {words[0]} {words[1]}\n")
    (folder / "sshd_config").write_text(
        f"ListenAddress {host}\nPort {PORT}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/allowed\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f"AllowUsers {getpass.getuser()}\nUseDNS no\nLogLevel ERROR\nPrintMotd no\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # the server's empty root, by Debian's packaging; made by its unit elsewhere
    return folder

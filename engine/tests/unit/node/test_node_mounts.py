"""What is read from the kernel's list of mounts. The lines are those of a kernel 6.1."""

from __future__ import annotations

from pathlib import Path

import pytest
from farshore.errors import Permanent
from farshore.node import daemon, mounts
from farshore.node.config import NodeConfig
from farshore.node.mounts import check_locks, filesystem_of

NFS4 = "rw,vers=4.2,rsize=262144,wsize=262144,hard,proto=tcp,sec=sys,clientaddr=10.9.1.2,local_lock=none,addr=10.9.1.1"
NFS3 = "rw,vers=3,rsize=262144,hard,nolock,proto=tcp,mountvers=3,mountproto=tcp,local_lock=all,addr=10.9.1.1"


@pytest.fixture(autouse=True)
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lines = (
        "21 1 254:0 / / rw,relatime - ext4 /dev/vda1 rw",
        f"41 21 0:25 / /srv/shared rw,relatime shared:5 - nfs4 10.9.1.1:/ {NFS4}",
        f"42 21 0:26 / /srv/old\\040pool rw,relatime - nfs 10.9.1.1:/srv {NFS3}",
        "43 42 0:27 / /srv/old\\040pool/inner rw - tmpfs none rw",
        f"44 21 0:28 / /srv/v3 rw - nfs 10.9.1.1:/srv {NFS3.replace('nolock,', '').replace('=all', '=none')}",
        "45 21 0:29 / /srv/half rw - nfs 10.9.1.1:/srv rw,vers=3,local_lock=flock,addr=10.9.1.1",
        "46 21 0:30 / /srv/posix rw - nfs 10.9.1.1:/srv rw,vers=3,local_lock=posix,addr=10.9.1.1",
        "a line that is none",
    )
    path = tmp_path / "mountinfo"
    path.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(mounts, "MOUNTS", path)
    return path


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/srv/shared", "nfs4"),
        ("/srv/shared/pool/x", "nfs4"),
        ("/srv/sharedness", "ext4"),
        ("/srv/old pool/x", "nfs"),
        ("/srv/old pool/inner/x", "tmpfs"),
    ],
)
def test_the_innermost_mount_holds_a_path(path: str, kind: str):
    assert filesystem_of(Path(path)) == kind


@pytest.mark.parametrize("path", ["/var/lib", "/srv/shared/pool", "/srv/old pool/inner", "/srv/v3", "/srv/posix"])
def test_locks_that_others_see_are_taken(path: str):
    check_locks(Path(path), "state_dir")


@pytest.mark.parametrize(
    ("path", "why"), [("/srv/old pool/state", "local_lock=all, nolock"), ("/srv/half", "local_lock=flock")]
)
def test_locks_that_each_host_keeps_for_itself_are_refused(path: str, why: str):
    with pytest.raises(Permanent, match=f"mounted with {why}: ") as caught:
        check_locks(Path(path), "platform.pool")
    assert (caught.value.code, caught.value.field) == ("locks-local", "platform.pool")


def test_where_mounts_cannot_be_read_nothing_is_refused(kernel: Path):
    kernel.unlink()
    assert filesystem_of(Path("/srv")) == ""
    check_locks(Path("/srv/old pool"), "state_dir")


@pytest.mark.parametrize("field", ["state_dir", "platform.root"])
def test_a_node_does_not_start_there(tmp_path: Path, field: str):
    where = {"state_dir": str(tmp_path), "platform.root": str(tmp_path), field: "/srv/half/x"}
    settings = NodeConfig(
        name="beta-1",
        site="beta",
        control_url="https://127.0.0.1:1",
        state_dir=Path(where["state_dir"]),
        platform={"type": "file", "root": where["platform.root"]},
    )
    with pytest.raises(Permanent) as caught:
        daemon.run(settings)
    assert (caught.value.code, caught.value.field) == ("locks-local", field)

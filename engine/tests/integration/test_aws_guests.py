"""Guests that come to AWS are looked into and changed while they are off: on a layer, never on a checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from doubles import guest_disks, small_guest, windows_disk
from doubles.aws import AwsDouble
from doubles.aws_site import BUCKET, Instance, account, config, make_bucket
from doubles.guest_disks import MAC, ROOT_UUID, codes, linux
from farshore.errors import Conflict, Permanent, Retry
from farshore.model.guest import GuestDisk, GuestNic, GuestPolicy, MachinePrepareParams, MachinePrepareResult
from farshore.model.machine import DiskFacts, MachineFacts, NicFacts, PoolFacts
from farshore.model.task import DiskSpec, MachineCreateParams, NicSpec
from farshore.platforms.aws import policy, tags
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.compute import AwsCompute
from farshore.platforms.aws.points import Points
from farshore.platforms.aws.types import Types
from farshore.recovery.guest.hives import Hive
from farshore.recovery.steps import prepare
from farshore.units import GIB, MIB

TAG = "run-over-3"
CACHE = Path(os.environ.get("FARSHORE_LAB_CACHE", ".cache/lab"))
NAME = "shop"
#: A guest of a KVM site that would not come up in EC2: its root by a name of virtio's, no driver of NVMe in front.
VIRTIO = {
    "/etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n",
    f"/boot/initrd.img-{guest_disks.VERSION}": guest_disks.initramfs(("virtio_blk",)),
    f"/lib/modules/{guest_disks.VERSION}/kernel/drivers/nvme/host/nvme.ko.xz": b"nvme",
    f"/lib/modules/{guest_disks.VERSION}/modules.dep": "kernel/drivers/nvme/host/nvme.ko.xz:\n",
    "/etc/default/grub": 'GRUB_CMDLINE_LINUX=""\n',
    "/etc/cloud/cloud.cfg": "datasource_list: [ NoCloud, None ]\n",
}


@pytest.fixture
def aws(double: AwsDouble) -> AwsDouble:
    """The double, emptied."""
    double.clear()
    make_bucket(double)
    return double


@pytest.fixture(scope="module")
def shared(double: AwsDouble, tmp_path_factory: pytest.TempPathFactory) -> tuple[Account, Types]:
    """Clients and instance types, which are slow to get."""
    made = account(config(double, tmp_path_factory.mktemp("none")))
    return made, Types(made)


@pytest.fixture
def site(aws: AwsDouble, shared: tuple[Account, Types], tmp_path: Path) -> Account:
    return account(config(aws, tmp_path / "s", power_s="20s"), shared[0])


@pytest.fixture
def compute(site: Account, shared: tuple[Account, Types]) -> AwsCompute:
    return AwsCompute(site, shared[1], lambda: PoolFacts(path="ebs", capacity_bytes=GIB, free_bytes=GIB))


def point(aws: AwsDouble, image: Path) -> str:
    """Return a completed snapshot of a volume that holds ``image``."""
    ec2 = aws.client("ec2")
    volume = ec2.create_volume(Size=1, AvailabilityZone=f"{aws.region}a")["VolumeId"]
    aws.put_volume(volume, image)
    snapshot = str(ec2.create_snapshot(VolumeId=volume)["SnapshotId"])
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig={"Delay": 0, "MaxAttempts": 50})
    ec2.delete_volume(VolumeId=volume)
    return snapshot


def made(aws: AwsDouble, compute: AwsCompute, *points: str) -> str:
    """Return a machine of ``points``, made as a failover makes it."""
    subnet = aws.client("ec2").describe_subnets(Filters=[{"Name": "availability-zone", "Values": [f"{aws.region}a"]}])[
        "Subnets"
    ][0]["SubnetId"]
    disks = dict(zip(("vda", "vdb"), points, strict=False))
    facts = MachineFacts(
        machine_id="6f9c9b0a-52ad-4f0e-9d0f-5a5b4b1a7c22",
        name=NAME,
        cpus=2,
        memory_bytes=900 * MIB,
        disks=tuple(DiskFacts(disk_id=disk, size_bytes=GIB, boot=disk == "vda") for disk in disks),
        nics=(NicFacts(mac=MAC, network="lan"),),
    )
    return compute.create(
        MachineCreateParams(
            tag=TAG,
            purpose="failover",
            name=NAME,
            facts=facts,
            cpus=2,
            memory_bytes=900 * MIB,
            disks=tuple(DiskSpec(disk_id=disk, point=at, size_bytes=GIB) for disk, at in disks.items()),
            nics=(NicSpec(mac=MAC, network=subnet),),
            epoch=1,
        )
    )


def prepared(compute: AwsCompute, machine_id: str, **guest: Any) -> MachinePrepareResult:
    """Prepare a machine as a node does."""
    params = MachinePrepareParams(
        machine_id=machine_id,
        name=NAME,
        purpose="failover",
        disks=tuple(GuestDisk(disk_id=disk, boot=disk == "vda") for disk in ("vda", "vdb")),
        nics=(GuestNic(mac=MAC, source_mac=MAC),),
        policy=GuestPolicy(**guest),
    )
    return prepare.machine(compute, prepare.as_made(params, "aws", compute.facts(machine_id)), lambda: None)


def volume(aws: AwsDouble, compute: AwsCompute, machine_id: str, disk_id: str = "vda") -> Path:
    """Return what a disk of a machine holds."""
    return aws.volume(next(disk.path for disk in compute.facts(machine_id).disks if disk.disk_id == disk_id))


def digest(image: Path) -> str:
    with image.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def left(aws: AwsDouble) -> dict[str, set[str]]:
    """Return the snapshots and volumes of the account."""
    ec2 = aws.client("ec2")
    return {
        "snapshots": {one["SnapshotId"] for one in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]},
        "volumes": {one["VolumeId"] for one in ec2.describe_volumes()["Volumes"]},
    }


def found(aws: AwsDouble, compute: AwsCompute, machine_id: str, *paths: str) -> list[str]:
    """Return files of a machine's first disk."""
    image = volume(aws, compute, machine_id)
    assert guest_disks.sound(image)
    return [(guest_disks.read(image, path) or b"").decode() for path in paths]


def nothing_held(site: Account) -> None:
    """See that a node holds no guest's disk, and that none is mounted."""
    folder = site.settings.folder
    assert not [path for part in ("guests", "layers", "daemons") for path in folder.glob(f"{part}/*")]
    assert str(folder) not in Path("/proc/mounts").read_text()


def test_a_guest_of_kvm_is_made_fit_for_ec2_and_its_checkpoint_stays_as_it_is(
    aws: AwsDouble, compute: AwsCompute, site: Account, tmp_path: Path
) -> None:
    disk = guest_disks.ext4_disk(tmp_path / "disk.raw", linux(**VIRTIO))
    base = point(aws, disk)
    before = digest(aws.snapshot(base))
    machine_id = made(aws, compute, base)
    own = left(aws)
    disks = compute.facts(machine_id).disks
    aws.forget_calls()
    aws.policy(policy.document(policy.Scope(aws.region, site.settings.bucket, site.settings.prefix)))
    result = prepared(compute, machine_id)
    assert codes(result) == {
        "fstab-by-path": "warning",
        "driver-disk-added": "warning",
        "driver-network-missing": "warning",
    }
    assert not result.stopped
    assert [change.what for change in result.changes] == [
        "fstab",
        "initial file system",
        "record",
        "cloud-init",
        "console",
        "console",
        "record",
    ]
    # What was touched was read, what differs was written, and no more.
    reads, writes = len(aws.calls("GetSnapshotBlock")), len(aws.calls("PutSnapshotBlock"))
    assert 0 < writes <= reads < 20
    assert not {call.outcome for call in aws.calls()} & {"UnauthorizedOperation", "AccessDeniedException"}
    aws.policy(None)

    table, menu, source = found(
        aws, compute, machine_id, "/etc/fstab", "/boot/grub/grub.cfg", "/etc/cloud/cloud.cfg.d/99-farshore.cfg"
    )
    assert table == f"UUID={ROOT_UUID} / ext4 defaults 0 1\n"
    assert "console=ttyS0,115200" in menu
    assert "Ec2" in source
    now = compute.facts(machine_id).disks
    assert [one.model_copy(update={"path": ""}) for one in now] == [
        one.model_copy(update={"path": ""}) for one in disks
    ]
    assert now[0].path != disks[0].path
    # One snapshot more, a child of the point; the volume of the point is gone.
    assert left(aws)["volumes"] == {now[0].path}
    [child] = left(aws)["snapshots"] - own["snapshots"]
    assert digest(aws.snapshot(child)) == digest(aws.volume(now[0].path))
    assert digest(aws.snapshot(base)) == before

    # Again, it finds its own work done.
    aws.forget_calls()
    assert prepared(compute, machine_id).changes == ()
    assert not aws.calls("StartSnapshot")
    assert compute.facts(machine_id).disks == now
    nothing_held(site)

    compute.start(machine_id)
    compute.power_off(machine_id)
    with pytest.raises(Conflict) as caught:
        prepared(compute, machine_id)
    assert caught.value.code == "machine-was-started"
    assert compute.sweep(TAG)[1] == []
    assert left(aws) == {"snapshots": {base}, "volumes": set()}


def test_of_several_disks_only_those_that_were_changed_are_exchanged(
    aws: AwsDouble, compute: AwsCompute, site: Account, tmp_path: Path
) -> None:
    root = guest_disks.ext4_disk(tmp_path / "root.raw", linux(**{"/etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n"}))
    data = guest_disks.ext4_disk(tmp_path / "data.raw", {"/shop.db": b"rows"})
    machine_id = made(aws, compute, point(aws, root), point(aws, data))
    before = {disk.disk_id: disk.path for disk in compute.facts(machine_id).disks}
    with compute.open_disks(machine_id) as disks:
        assert [(disk.disk_id, disk.boot, disk.bus, disk.size_bytes) for disk in disks] == [
            ("vda", True, "nvme", GIB),
            ("vdb", False, "nvme", GIB),
        ]
        assert guest_disks.read(disks[1].path, "/shop.db") == b"rows"
        with disks[0].path.open("r+b") as image:
            image.seek(GIB - 4096)
            image.write(b"end")
    after = compute.facts(machine_id)
    assert [disk.boot for disk in after.disks] == [True, False]
    assert after.disks[0].path != before["vda"]
    assert after.disks[1].path == before["vdb"]
    with volume(aws, compute, machine_id).open("rb") as image:
        image.seek(GIB - 4096)
        assert image.read(3) == b"end"
    compute.start(machine_id)
    nothing_held(site)


@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="the guest is built as root")
@pytest.mark.timeout(600)
def test_a_guest_that_was_fixed_here_starts_from_nvme(aws: AwsDouble, compute: AwsCompute, tmp_path: Path) -> None:
    kernel = small_guest.anybodys(CACHE)
    disk = tmp_path / "disk.raw"
    version = small_guest.make(disk, kernel, ("crc32c_generic", "ext4", "virtio_pci", "virtio_blk"))
    device, marks = "nvme,serial=root", (small_guest.UP, small_guest.LOST)
    # What it had at home it starts from; what EC2 has it does not know.
    assert small_guest.UP in small_guest.boot(disk, version, "virtio-blk-pci", "quiet", tmp_path, marks)
    assert small_guest.LOST in small_guest.boot(disk, version, device, "quiet", tmp_path, marks)
    machine_id = made(aws, compute, point(aws, disk))
    assert codes(prepared(compute, machine_id))["driver-disk-added"] == "warning"
    there = volume(aws, compute, machine_id)
    assert guest_disks.sound(there)
    assert small_guest.UP in small_guest.boot(there, version, device, "quiet", tmp_path, marks)


@pytest.mark.skipif(bool(guest_disks.missing("mkntfs", "ntfs-3g", "losetup")), reason="needs ntfs-3g")
def test_a_windows_guest_is_looked_into_too(aws: AwsDouble, compute: AwsCompute, site: Account, tmp_path: Path) -> None:
    services = {**windows_disk.GOOD, "stornvme": 3, "ena": 3}
    base = point(aws, windows_disk.disk(tmp_path / "windows.raw", windows_disk.files(services)))
    before = digest(aws.snapshot(base))
    machine_id = made(aws, compute, base)
    result = prepared(compute, machine_id)
    assert result.system == "Windows Server 2019 Standard (17763)"
    assert codes(result) == {"driver-disk-missing": "warning"}
    registry = Hive.load(windows_disk.read(volume(aws, compute, machine_id), "/Windows/System32/config/SYSTEM"))
    assert registry is not None
    assert registry.number("ControlSet001\\Services\\stornvme", "Start") == 0
    assert digest(aws.snapshot(base)) == before
    nothing_held(site)


def test_what_is_only_looked_at_makes_nothing(aws: AwsDouble, compute: AwsCompute, tmp_path: Path) -> None:
    base = point(aws, guest_disks.ext4_disk(tmp_path / "disk.raw", linux(**VIRTIO)))
    machine_id = made(aws, compute, base)
    own = left(aws)
    result = prepared(compute, machine_id, fix=False)
    assert codes(result)["driver-disk-missing"] == "error"
    assert result.stopped

    def cut_short() -> None:
        with compute.open_disks(machine_id) as disks:
            disks[0].path.open("r+b").write(b"not kept")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cut_short()
    assert left(aws) == own


#: What a step does to EC2 and EBS, in order, and what it may be cut short by.
STEPS = (
    "StartSnapshot",
    "PutSnapshotBlock",
    "CompleteSnapshot",
    "CreateVolume",
    "CreateTags",
    "DetachVolume",
    "AttachVolume",
    "DeleteVolume",
    "DeleteTags",
)
KILLED = """\
import json, os, signal, sys
from farshore.platforms.aws.account import Account
from farshore.platforms.aws.compute import AwsCompute
from farshore.platforms.aws.settings import read
from farshore.platforms.aws.types import Types

settings, machine_id, step, after = json.loads(sys.argv[1])
account = Account(read(settings))
compute = AwsCompute(account, Types(account), lambda: None)
inner = account.call

def call(service, operation, **params):
    hit = "".join(part.title() for part in operation.split("_")) == step
    if hit and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    reply = inner(service, operation, **params)
    if hit:
        os.kill(os.getpid(), signal.SIGKILL)
    return reply

with compute.open_disks(machine_id) as disks:
    account.call = call
    with disks[0].path.open("r+b") as image:
        image.seek(700_000)
        image.write(b"killed")
    if step == "inside":
        os.kill(os.getpid(), signal.SIGKILL)
"""


#: Where a node is killed: before a step, or once it is done and nobody knows. All where many states are tried.
KILLS = [("inside", True), *((step, after) for step in STEPS for after in (False, True))]
CHOSEN = (
    KILLS
    if int(os.environ.get("STATES", "0")) > 100_000
    else [
        ("inside", True),
        ("PutSnapshotBlock", True),
        ("CreateTags", False),
        ("CreateTags", True),
        ("DetachVolume", True),
        ("DeleteTags", False),
    ]
)


@pytest.mark.parametrize(("step", "after"), CHOSEN)
def test_a_node_that_is_killed_leaves_nothing_that_stays(
    aws: AwsDouble, compute: AwsCompute, site: Account, tmp_path: Path, step: str, *, after: bool
) -> None:
    disk = guest_disks.ext4_disk(tmp_path / "disk.raw", linux(**{"/etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n"}))
    base = point(aws, disk)
    before = digest(aws.snapshot(base))
    machine_id = made(aws, compute, base)
    own = left(aws)
    settings = site.settings.model_dump(mode="json", exclude_defaults=True) | {"type": "aws"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps([settings, machine_id, step, after])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    decided = (step, after) == ("CreateTags", True) or step in STEPS[STEPS.index("CreateTags") + 1 :]
    if decided and (step, after) != ("DeleteTags", True):
        with pytest.raises(Conflict) as caught:
            compute.start(machine_id)  # not a machine in the middle of it
        assert caught.value.code == "machine-unfinished"
        assert [disk.disk_id for disk in compute.facts(machine_id).disks] == ["vda"]

    result = prepared(compute, machine_id)
    assert [change.what for change in result.changes][:1] == ["fstab"]
    [table] = found(aws, compute, machine_id, "/etc/fstab")
    assert ROOT_UUID in table
    with volume(aws, compute, machine_id).open("rb") as image:
        image.seek(700_000)
        assert (image.read(6) == b"killed") == decided  # what was decided is kept, the rest was never there
    now = left(aws)
    assert now["volumes"] == {compute.facts(machine_id).disks[0].path}
    assert len(now["snapshots"] - own["snapshots"]) == 1
    assert digest(aws.snapshot(base)) == before
    nothing_held(site)
    assert compute.sweep(TAG)[1] == []
    assert left(aws) == {"snapshots": {base}, "volumes": set()}


@pytest.mark.parametrize(("step", "volumes"), [("inside", 1), ("CreateVolume", 2)])
def test_what_a_killed_node_has_left_goes_with_the_run(
    aws: AwsDouble, compute: AwsCompute, site: Account, tmp_path: Path, step: str, volumes: int
) -> None:
    base = point(aws, guest_disks.ext4_disk(tmp_path / "disk.raw", linux()))
    settings = site.settings.model_dump(mode="json", exclude_defaults=True) | {"type": "aws"}
    order = json.dumps([settings, made(aws, compute, base), step, True])
    done = subprocess.run([sys.executable, "-c", KILLED, order], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(left(aws)["volumes"]) == volumes
    assert (str(site.settings.folder) in Path("/proc/mounts").read_text()) == (step == "inside")
    assert compute.sweep(TAG)[1] == []
    assert left(aws) == {"snapshots": {base}, "volumes": set()}
    nothing_held(site)


@pytest.mark.parametrize("kind", ["lost", "5xx"])
def test_replies_that_are_lost_change_nothing_twice(
    aws: AwsDouble, compute: AwsCompute, tmp_path: Path, kind: str
) -> None:
    disk = guest_disks.ext4_disk(tmp_path / "disk.raw", linux(**{"/etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n"}))
    base = point(aws, disk)
    machine_id = made(aws, compute, base)
    own = left(aws)
    aws.settings(hidden_calls=2)
    for step in ("GetSnapshotBlock", "ListSnapshotBlocks", *STEPS):
        aws.fault(step, kind)
    result = prepared(compute, machine_id)
    assert [change.what for change in result.changes][:1] == ["fstab"]
    assert not aws.pending_faults()
    [table] = found(aws, compute, machine_id, "/etc/fstab")
    assert ROOT_UUID in table
    assert len(left(aws)["snapshots"] - own["snapshots"]) == 1
    assert left(aws)["volumes"] == {compute.facts(machine_id).disks[0].path}


def test_a_key_that_cannot_be_used_is_told_and_the_machine_stays_as_it_was(
    aws: AwsDouble, compute: AwsCompute, tmp_path: Path
) -> None:
    ec2, kms = aws.client("ec2"), aws.client("kms")
    key = kms.create_key()["KeyMetadata"]["Arn"]
    disk = guest_disks.ext4_disk(tmp_path / "disk.raw", linux(**{"/etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n"}))
    sealed = ec2.create_volume(Size=1, AvailabilityZone=f"{aws.region}a", Encrypted=True, KmsKeyId=key)["VolumeId"]
    aws.put_volume(sealed, disk)
    base = ec2.create_snapshot(VolumeId=sealed)["SnapshotId"]
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[base], WaiterConfig={"Delay": 0, "MaxAttempts": 50})
    machine_id = made(aws, compute, base)
    before = compute.facts(machine_id).disks
    kms.disable_key(KeyId=key)
    result = prepared(compute, machine_id)
    assert codes(result) == {"kms-key": "warning"}  # nothing was seen
    assert "kms:Decrypt" in result.findings[0].remedy
    kms.enable_key(KeyId=key)

    def disabled_meanwhile() -> None:
        with compute.open_disks(machine_id) as disks:
            disks[0].path.open("r+b").write(b"not kept")
            kms.disable_key(KeyId=key)

    with pytest.raises(Permanent) as caught:
        disabled_meanwhile()
    assert caught.value.code == "kms-key"
    kms.enable_key(KeyId=key)
    assert compute.facts(machine_id).disks == before
    assert prepared(compute, machine_id).changes
    [new] = compute.facts(machine_id).disks
    made_of = ec2.describe_volumes(VolumeIds=[new.path])["Volumes"][0]
    assert (made_of["Encrypted"], made_of["KmsKeyId"]) == (True, key)


def test_a_snapshot_that_stays_pending_is_told(aws: AwsDouble, tmp_path: Path) -> None:
    site = account(config(aws, tmp_path / "s", power_s="1s"))
    compute = AwsCompute(site, Types(site), lambda: PoolFacts(path="ebs", capacity_bytes=GIB, free_bytes=GIB))
    disk = guest_disks.ext4_disk(tmp_path / "disk.raw", linux(**{"/etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n"}))
    machine_id = made(aws, compute, point(aws, disk))
    before, own = compute.facts(machine_id).disks, left(aws)
    aws.settings(completion_looks=100_000)
    with pytest.raises(Retry) as caught:
        prepared(compute, machine_id)
    assert caught.value.code == "snapshot-pending"
    assert compute.facts(machine_id).disks == before
    assert left(aws) == own
    aws.settings(completion_looks=1)
    assert prepared(compute, machine_id).changes


def test_disks_that_are_not_ours_or_not_off_are_left_alone(
    aws: AwsDouble, compute: AwsCompute, site: Account, tmp_path: Path
) -> None:
    base = point(aws, guest_disks.ext4_disk(tmp_path / "disk.raw", linux()))
    foreign = Instance(aws)
    aws.client("ec2").stop_instances(InstanceIds=[foreign.machine_id])
    while compute.power(foreign.machine_id) != "off":
        pass
    machine_id = made(aws, compute, base)
    ec2 = aws.client("ec2")
    more = ec2.create_volume(Size=1, AvailabilityZone=f"{aws.region}a")["VolumeId"]

    def refused(one: str) -> str:
        with pytest.raises(Conflict) as caught, compute.open_disks(one):
            pass
        return caught.value.code

    assert refused(foreign.machine_id) == "disk-not-ours"
    ec2.attach_volume(VolumeId=more, InstanceId=machine_id, Device="/dev/sdp")
    assert refused(machine_id) == "disk-not-ours"
    ec2.detach_volume(VolumeId=more, InstanceId=machine_id)
    compute.start(machine_id)
    assert refused(machine_id) == "machine-on"
    nothing_held(site)


def test_a_machine_that_is_here_to_stay_gives_back_what_it_was_made_of(
    aws: AwsDouble, compute: AwsCompute, site: Account, tmp_path: Path
) -> None:
    disk = guest_disks.ext4_disk(tmp_path / "disk.raw", linux(**{"/etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n"}))
    base = point(aws, disk)
    points = Points(site)
    machine_id = made(aws, compute, base)
    aws.client("ec2").create_tags(
        Resources=[base], Tags=tags.tag_list({tags.SITE: tags.site_of(BUCKET, site.settings.prefix)})
    )
    points.lease(base, TAG)
    prepared(compute, machine_id)
    compute.start(machine_id)
    assert compute.facts(machine_id).on_points
    with pytest.raises(Conflict):
        points.check_drop(base)
    assert compute.detach(machine_id).state == "done"
    assert compute.detach(machine_id).state == "done"
    assert not compute.facts(machine_id).on_points
    points.check_drop(base)
    assert left(aws)["snapshots"] == {base}
    assert not aws.client("ec2").describe_images(Owners=["self"])["Images"]
    [table] = found(aws, compute, machine_id, "/etc/fstab")
    assert ROOT_UUID in table

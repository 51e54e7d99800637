"""A guest between a private hypervisor and AWS: a control plane, a node in the hypervisor's namespaces, a node in AWS.

The hypervisor is the laboratory's ``alpha`` with its database, AWS is its double whose instances run real guests.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from doubles.aws import AwsDouble
from doubles.aws_guests import AwsGuests
from doubles.aws_site import BUCKET, make_bucket
from doubles.control_process import Control, until
from doubles.node_process import NodeProcess
from doubles.ports import free_port
from farshore.platforms.nbd.launcher import Launcher
from farshore.testing.lab import Lab, app, guest
from farshore.testing.lab.accelerator import accelerator
from farshore.testing.lab.relay import DATA_PORTS, HOST, Route
from farshore.testing.lab.site import Site
from farshore.units import GIB

DB: Final = app.tier("db").name
#: Addresses of instances: of the loopback, so that guests behind them answer there.
_VPC, _SUBNET = "127.77.0.0/16", "127.77.1.0/24"
_FETCH: Final = "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=20).read().decode())"


class KvmNode(NodeProcess):
    """A node inside a private hypervisor's namespaces."""

    def __init__(self, folder: Path, site: Site, control_url: str) -> None:
        self.where = site
        super().__init__(folder, f"{site.name}-1", site.name, control_url, DATA_PORTS[site.name])
        platform = {"type": "kvm", "uri": site.uri, "pool": str(site.storage / "pool"), "accelerator": "tcg"}
        self.settings["platform"] = {**platform, "scratch": str(site.folder / "s")}
        self.write()

    def start(self) -> NodeProcess:
        words = [str(self.where.python), "-m", "farshore.node", "--config", str(self.config_path)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        return self


class AwsNode(NodeProcess):
    """A node with the double's credentials; it could run anywhere. ``changes``: settings that are not those of all."""

    def __init__(
        self, folder: Path, aws: AwsDouble, control_url: str, port: int, site: str = "cloud", **changes: Any
    ) -> None:
        self._aws = aws
        super().__init__(folder, f"{site}-1", site, control_url, port)
        self.settings["platform"] = {
            "type": "aws",
            "region": aws.region,
            "zone": f"{aws.region}a",
            "bucket": BUCKET,
            "scratch": str(folder / f"{site}.scratch"),
            "endpoint": aws.url,
            "poll_s": 0.2,
            **changes,
        }
        self.write()

    def start(self) -> NodeProcess:
        before = {name: os.environ.get(name) for name in self._aws.environment()}
        os.environ.update(self._aws.environment())
        try:
            return super().start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


class Crossing:
    """Both sites at work, and the plan ``shop`` between them."""

    def __init__(self, control: Control, lab: Lab, aws: AwsDouble, guests: AwsGuests, subnet: str) -> None:
        self.control, self.lab, self.aws, self.guests, self.subnet = control, lab, aws, guests, subnet
        self.plan = {
            "name": "shop",
            "source_site": "alpha",
            "target_site": "cloud",
            "rpo": "1h",
            "machines": [
                {
                    "name": DB,
                    "recovery": {"instance_type": "t3.small"},
                    "probes": [{"type": "http", "port": 8080, "path": "/cgi-bin/status", "contains": '"status":"ok"'}],
                }
            ],
            "networks": [{"source": "app", "drill": {"subnet": "10.77.9.0/24"}, "failover": subnet}],
        }

    def protect(self) -> None:
        """Apply the plan and wait for the first checkpoint."""
        self.control.ok("PUT", "/plans/shop", {"definition": self.plan})
        self.control.ok("POST", "/plans/shop:protect", {"state": "protected"})

        def protected() -> bool:
            assert self.guests.failure is None, self.guests.failure
            return bool(self.control.ok("GET", "/plans/shop")["state"] == "protected")

        until(protected, "the shop is protected", 300)

    def run(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Order a run and return it as it ended."""
        run_id = self.control.ok("POST", f"/plans/shop:{verb}", body)["run"]["run_id"]

        def look() -> dict[str, Any] | None:
            assert self.guests.failure is None, self.guests.failure
            run = self.control.ok("GET", f"/runs/{run_id}")
            return run if run["ended_at"] else None

        run: dict[str, Any] = until(look, f"{verb} ends", 400)
        assert run["state"] == "succeeded", json.dumps({"error": run["error"], "steps": run["steps"]}, indent=1)
        return run

    def point(self, run: dict[str, Any]) -> dict[str, Any]:
        """Return the checkpoint that a run's machine came from."""
        found: dict[str, Any] = self.control.ok("GET", f"/checkpoints/{run['machines'][0]['checkpoint_id']}")
        return found

    def machine(self, site: str) -> dict[str, Any]:
        """Return the database as a site's inventory has it now."""
        before = self.control.ok("GET", f"/sites/{site}")["inventory_at"]
        self.control.ok("POST", f"/sites/{site}:refresh")
        until(lambda: self.control.ok("GET", f"/sites/{site}")["inventory_at"] != before, f"{site} is looked at", 120)
        found: list[dict[str, Any]] = self.control.ok("GET", f"/machines?site={site}&name={DB}")["items"]
        return found[-1]

    def ask_alpha(self, name: str) -> Any:
        """Ask the database where it runs at home."""
        url = f"http://{app.NETWORKS['alpha'][0].address(11)}:8080/cgi-bin/{name}"
        done = subprocess.run([self.lab.alpha.python, "-c", _FETCH, url], check=False, capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def ask_cloud(self, address: str, name: str) -> Any:
        """Ask the database where it runs in AWS."""
        try:
            with urllib.request.urlopen(f"http://{address}:8080/cgi-bin/{name}", timeout=20) as answer:
                return json.loads(answer.read())
        except OSError:
            return None


@contextlib.contextmanager
def crossing(folder: Path, cache: Path) -> Iterator[Crossing]:
    """Bring all of it up; leave nothing of it."""
    control = Control(folder / "home").start()
    lab = Lab(folder / "l", cache)
    nodes: list[NodeProcess] = []
    image = guest.build(cache)
    kind = accelerator(cache, image, lambda _line: None)
    try:
        with AwsDouble(folder / "aws") as aws, AwsGuests(aws, folder / "guests", kind) as guests:
            make_bucket(aws)
            ec2 = aws.client("ec2")
            vpc = ec2.create_vpc(CidrBlock=_VPC)["Vpc"]["VpcId"]
            zone = f"{aws.region}a"
            subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=_SUBNET, AvailabilityZone=zone)["Subnet"]["SubnetId"]
            api_port, node_port = (int(url.rpartition(":")[2]) for url in (control.home.url, control.home.node_url))
            lab.up(sites_only=True, api_port=api_port, node_port=node_port)
            database = lab.guests["db"]
            database.ensure(image, kind, lambda _line: None)
            to_alpha, to_cloud = free_port(), free_port()
            lab.relay.add(Route("cloud-to-alpha", HOST, to_alpha, "alpha", DATA_PORTS["alpha"]))
            lab.relay.add(Route("alpha-to-cloud", "alpha", to_cloud, HOST, to_cloud))
            for node, platform, port in (
                (KvmNode(folder, lab.alpha, control.home.node_url), "kvm", to_alpha),
                (AwsNode(folder, aws, control.home.node_url, to_cloud), "aws", to_cloud),
            ):
                nodes.append(node)
                control.ok("PUT", f"/sites/{node.site}", {"platform": platform})
                wanted = {
                    "site": node.site,
                    "roles": ["replication", "recovery"],
                    "data_address": f"127.0.0.1:{port}",
                }
                control.ok("PUT", f"/nodes/{node.name}", wanted)
                node.enrol(control.ok("POST", f"/nodes/{node.name}:token")["token"], ca_file=control.home.ca)
                node.start()
            database.wait()
            for node in nodes:
                until(
                    lambda node=node: control.ok("GET", f"/sites/{node.site}")["inventory_at"],
                    f"inventory of {node.site}",
                    120,
                )
            yield Crossing(control, lab, aws, guests, subnet)
    finally:
        for node in nodes:
            node.close()
        launcher = Launcher(lab.alpha.folder / "s" / "daemons")
        for key in list(launcher.keys()):
            launcher.stop(key)
        lab.down()
        control.kill()


def same(one: Path, one_format: str, other: Path, other_format: str) -> bool:
    """Say whether two images hold the same; what one has beyond the other's end is zero."""
    words = ["qemu-img", "compare", "-U", "-f", one_format, "-F", other_format, str(one), str(other)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode in {0, 1}, done.stderr
    return done.returncode == 0


def there_and_back(made: Crossing) -> dict[str, Any]:
    """Protect the database, fail it over to AWS and back; its disks are the same at both stops, and it answers."""
    made.protect()
    until(lambda: (made.ask_alpha("insert?value=over") or {}).get("value") == "over", "a row is stored", 120)
    over = made.run("failover", {"to_site": "cloud"})
    away = made.machine("cloud")
    instance = str(away["machine_id"])
    assert made.guests.booted == [instance]
    # The guest at home is off and fenced: its own disks are the image that nobody of us has written.
    compared = 0
    for disk, image in zip(made.lab.guests["db"].disks.values(), made.guests.launched[instance], strict=True):
        assert image.stat().st_size == GIB
        assert same(disk, "qcow2", image, "raw"), f"{disk} is not what runs in AWS"
        compared += 1
    address = away["nics"][0]["addresses"][0]
    assert until(lambda: made.ask_cloud(address, "find?value=over"), "it answers in AWS", 120)["rows"] == 1
    stored = until(lambda: made.ask_cloud(address, "insert?value=back"), "a row is stored in AWS", 120)
    assert stored["value"] == "back"

    back = made.run("reprotect", {})
    stats = back["cycles"][0]["stats"]
    home = made.run("failover", {"to_site": "alpha"})
    volumes = {disk["disk_id"]: made.aws.volume(disk["path"]) for disk in away["disks"]}
    pool = made.lab.alpha.storage / "pool"
    for disk in made.point(home)["disks"]:
        volume = volumes[disk["disk_key"].partition("/")[2]]
        assert same(pool / f"{disk['point']}.qcow2", "qcow2", volume, "raw"), f"{disk} is not what ran in AWS"
        compared += 1
    assert until(lambda: made.ask_alpha("find?value=back"), "it answers at home", 120)["rows"] == 1
    return {
        "compared": compared,
        "green": sum(run["machines"][0]["state"] == "green" for run in (over, home)),
        "over_rto_s": over["machines"][0]["rto_s"],
        "home_rto_s": home["machines"][0]["rto_s"],
        "back_mode": stats["mode"],
        "back_moved_bytes": stats["moved_bytes"],
        "disk_bytes": stats["disk_bytes"],
    }

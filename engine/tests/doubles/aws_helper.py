"""A drill's network and the operator's helper in it, as network namespaces: what is run at the helper reaches it truly.

The helper's agent in the double runs commands in the helper's namespaces; an interface that is attached to it becomes
an end of a cable with its hardware address. At the other end is whatever a test has serve at machines' addresses.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any, Final, Self

from doubles.aws import AwsDouble
from doubles.aws_site import Instance

_POLL_S: Final = 0.1
#: Answers HTTP with a text; a port that is one higher sends it as a banner.
_SERVER: Final = """
import http.server, socketserver, sys, threading
address, port, status, text = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode()
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
class Banner(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(text)
socketserver.ThreadingTCPServer.allow_reuse_address = True
banner = socketserver.ThreadingTCPServer((address, port + 1), Banner)
threading.Thread(target=banner.serve_forever, daemon=True).start()
page = http.server.ThreadingHTTPServer((address, port), Page)
print("serving", flush=True)
page.serve_forever()
"""
#: A machine of its own as far as networks go: its interfaces, its /run, its /sys.
_HOST: Final = "mount -t tmpfs tmpfs /run && mount -t sysfs sysfs /sys && ip link set lo up && echo up && read line"


class _Host:
    """A process that keeps network and mount namespaces alive."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", _HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"
        self.prefix = ["nsenter", "--target", str(self.process.pid), "--net", "--mount"]

    def ip(self, *words: str) -> None:
        """Run ``ip`` there."""
        subprocess.run([*self.prefix, "ip", *words], check=True)

    def close(self) -> None:
        """End it, with all that it had."""
        self.process.communicate()


def await_running(aws: AwsDouble, machine_id: str) -> None:
    """Return when an instance runs; the double counts looks, so this does not take long."""
    waiter = aws.client("ec2").get_waiter("instance_running")
    waiter.wait(InstanceIds=[machine_id], WaiterConfig={"Delay": 0, "MaxAttempts": 50})


class HelperHost:
    """``with HelperHost(aws):`` makes the helper an instance of the double, tagged, with its agent at work."""

    def __init__(self, aws: AwsDouble, site: str) -> None:
        self.aws = aws
        self._ec2 = aws.client("ec2", attempts=3)
        self._helper, self._drill = _Host(), _Host()
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._plugged: set[str] = set()
        self._page: tuple[int, int, str] | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self.failure: BaseException | None = None
        self.machine_id = Instance(aws, ["sda1"]).machine_id
        named = [{"Key": "farshore:helper", "Value": site}, {"Key": "Name", "Value": "helper"}]
        self._ec2.create_tags(Resources=[self.machine_id], Tags=named)
        await_running(aws, self.machine_id)
        self.register()

    def register(self, **about: Any) -> None:
        """Let its agent be as it is said."""
        self.aws.agent(self.machine_id, prefix=self._helper.prefix, **about)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take it all away, but for what is in the double."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        self._end_servers()
        self._helper.close()
        self._drill.close()

    def _end_servers(self) -> None:
        for server in self._servers.values():
            server.kill()
            server.communicate()
        self._servers.clear()

    def interfaces(self) -> list[dict[str, Any]]:
        """Return the helper's interfaces in drills."""
        wanted = [{"Name": "tag:farshore:role", "Values": ["helper"]}]
        return list(self._ec2.describe_network_interfaces(Filters=wanted)["NetworkInterfaces"])

    def plug(self) -> None:
        """Give the helper a cable into the drill's network for each interface there that has none.

        One whose interface is gone is taken away, with what served at its other end.
        """
        found = {str(one["NetworkInterfaceId"]): one for one in self.interfaces()}
        for name in self._plugged - found.keys():
            self._plugged.remove(name)
            self._drill.ip("link", "del", f"d{name[4:14]}")
            self._end_servers()
        for name, one in found.items():
            if name in self._plugged:
                continue
            self._plugged.add(name)
            near, far = f"h{name[4:14]}", f"d{name[4:14]}"
            ends = ["type", "veth", "peer", "name", far, "netns", str(self._drill.process.pid)]
            self._helper.ip("link", "add", near, "address", one["MacAddress"], *ends)
            self._drill.ip("link", "set", far, "up")

    def serve(self, address: str, port: int = 8080, status: int = 200, text: str = "serving") -> None:
        """Let a machine of the drill answer HTTP with ``text``, and send it as a banner at the next port."""
        self._drill.ip("addr", "replace", f"{address}/24", "dev", f"d{min(self._plugged)[4:14]}")
        words = [sys.executable, "-c", _SERVER, address, str(port), str(status), text]
        server = subprocess.Popen([*self._drill.prefix, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._servers[address] = server
        assert server.stdout is not None
        assert server.stdout.readline() == b"serving\n"

    def watch(self, port: int, status: int, text: str) -> None:
        """From now on, plug in whatever is made, and let each machine that runs in a drill serve."""
        self._page = (port, status, text)
        self._thread = threading.Thread(target=self._run, name="aws-helper", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._done.wait(_POLL_S):
                self.plug()
                running = [{"Name": "instance-state-name", "Values": ["running"]}]
                for item in self._ec2.describe_instances(Filters=running)["Reservations"]:
                    for one in item["Instances"]:
                        made = {tag["Key"] for tag in one.get("Tags", [])}
                        address = one.get("PrivateIpAddress")
                        # A shell runs for a while as well; a machine that is made to its end says so.
                        if "farshore:made" in made and address not in self._servers and self._page and self._plugged:
                            self.serve(address, *self._page)
        except BaseException as error:  # noqa: BLE001 - whoever waits for a probe sees it
            self.failure = error

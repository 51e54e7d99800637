"""``python -m farshore.testing.lab COMMAND``: people read standard error, programs standard output (JSON)."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from farshore.errors import FarshoreError, NoSpace
from farshore.testing.lab import relay
from farshore.testing.lab.lab import Lab


def _say(line: str) -> None:
    sys.stderr.write(f"lab: {line}\n")
    sys.stderr.flush()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m farshore.testing.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "start the sites and the application; what is right already is left alone"),
        ("down", "end every process and remove everything below the root"),
        ("status", "tell what there is; changes nothing"),
        ("publish", "make a guest's port reachable on this machine's 127.0.0.1"),
        ("route", "cut, stall or heal a route of the relay"),
    ):
        one = commands.add_parser(name, help=text)
        one.add_argument(
            "--root", type=Path, required=True, help="folder of the laboratory (made, and removed by down)"
        )
        one.add_argument("--cache", type=Path, default=Path(".cache/lab"), help="folder for built guests [%(default)s]")
        one.add_argument("--json", action="store_true", help="status: one JSON document instead of a table")
        if name == "up":
            one.add_argument("--sites-only", action="store_true", help="no application")
            one.add_argument("--python", type=Path, help="the Python that <site>/python runs [this one]")
            one.add_argument("--api-port", type=int, default=relay.API_PORT, help="control plane [%(default)s]")
            one.add_argument("--node-port", type=int, default=relay.NODE_PORT, help="its port for nodes [%(default)s]")
        elif name == "publish":
            one.add_argument("name", help="name of the route, unique")
            one.add_argument("--port", type=int, required=True, help="port on 127.0.0.1 of this machine")
            one.add_argument("--site", required=True)
            one.add_argument("--address", required=True, help="address inside the site")
            one.add_argument("--to-port", type=int, default=8080, help="port there [%(default)s]")
        elif name == "route":
            one.add_argument("name", help="name of the route, as status --json shows it")
            one.add_argument("state", choices=["open", "cut", "stalled"])
    return parser.parse_args(argv)


def _table(document: dict[str, Any]) -> str:
    lines = [f"site {name:8} {'running' if site['running'] else 'down'}" for name, site in document["sites"].items()]
    lines += [f"guest {one['name']:20} {one['state']:8} {one['url']}" for one in document["guests"].values()]
    lines += [
        f"route {one['name']:20} {one['state']:8} {one['listen']}:{one['port']} to {one['to']} "
        f"{one['to_host']}:{one['to_port']} {one['error']}".rstrip()
        for one in document["relay"]["routes"]
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _arguments(argv)
    lab = Lab(arguments.root, arguments.cache, _say)
    try:
        if arguments.command == "up":
            document = lab.up(
                sites_only=arguments.sites_only,
                interpreter=arguments.python,
                api_port=arguments.api_port,
                node_port=arguments.node_port,
            )
        elif arguments.command == "down":
            document = {"changed": lab.down(), "root": str(lab.root)}
        elif arguments.command == "publish":
            changed = lab.publish(arguments.name, arguments.port, arguments.site, arguments.address, arguments.to_port)
            document = {"changed": changed, "url": f"http://127.0.0.1:{arguments.port}"}
        elif arguments.command == "route":
            lab.relay.set(arguments.name, arguments.state)
            document = {"name": arguments.name, "state": arguments.state}
        else:
            document = lab.status()
    except FarshoreError as error:
        _say(f"error: {error.message}")
        if error.hint:
            _say(error.hint)
        return error.exit_status
    except OSError as error:  # a full disk, a read-only one
        _say(f"error: {error}")
        return NoSpace.exit_status
    except KeyboardInterrupt:
        _say("interrupted; `up` goes on from here, `down` removes what there is")
        return 130
    if arguments.command == "status" and not arguments.json:
        sys.stdout.write(_table(document) + "\n")
    else:
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

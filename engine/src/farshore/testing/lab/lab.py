"""The laboratory as a whole: two private sites, the application on the first, the relay between them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from farshore import durable
from farshore.errors import Conflict, NotFound, Permanent
from farshore.testing.lab import app, command, guest
from farshore.testing.lab.accelerator import Accelerator, accelerator
from farshore.testing.lab.relay import API_PORT, HOST, NODE_PORT, Relay, Route, default_routes
from farshore.testing.lab.site import Site

SITES: Final = ("alpha", "beta")
_MARK: Final = ".farshore-lab"

Progress = Callable[[str], None]


class Lab:
    """Two sites below ``root``; built guests are kept in ``cache``, which outlives the laboratory.

    All state is on disk and in the processes themselves: any number of ``Lab`` objects may speak of the same root, and
    each call works from what it finds, also after a SIGKILL of anything at any moment.
    """

    def __init__(self, root: Path, cache: Path, progress: Progress = lambda _line: None) -> None:
        self.root = root.resolve()
        self.cache = cache.resolve()
        self._progress = progress
        self.sites: dict[str, Site] = {name: Site(self.root, name) for name in SITES}
        self.relay = Relay(self.root)
        self.guests: dict[str, app.Guest] = {one.role: app.Guest(self.sites["alpha"], one) for one in app.TIERS}

    @property
    def alpha(self) -> Site:
        """Return the site where the application begins."""
        return self.sites["alpha"]

    @property
    def beta(self) -> Site:
        """Return the site that it is recovered to."""
        return self.sites["beta"]

    def up(
        self,
        *,
        sites_only: bool = False,
        interpreter: Path | None = None,
        api_port: int = API_PORT,
        node_port: int = NODE_PORT,
    ) -> dict[str, Any]:
        """Bring up what is missing and return the document of :meth:`status`, with ``changed``.

        Args:
            sites_only: no guest is built, put on a site or started.
            interpreter: the Python that ``<site>/python`` runs inside a site; this process's own by default.
            api_port: port of the control plane for people, carried from both sites to the machine.
            node_port: its port for nodes, likewise.
        """
        command.require_root()
        with self._locked(create=True):
            changed = False
            for site in self.sites.values():
                changed |= site.start(interpreter, self._progress)
                for network in app.NETWORKS[site.name]:
                    changed |= app.ensure_network(site, network)
            changed |= self.relay.start(default_routes(api_port, node_port))
            kind: Accelerator | None = None
            if not sites_only:
                image = guest.build(self.cache, self._progress)
                kind = accelerator(self.cache, image, self._progress)
                for one in self.guests.values():
                    if one.ensure(image, kind, self._progress):
                        changed = True
                for one in self.guests.values():
                    if one.state() == "running":
                        self._progress(f"{one.name}: {one.wait()}")
            return {"changed": changed, **self._describe(kind)}

    def down(self) -> bool:
        """End every process and remove everything below the root; True if there was something."""
        command.require_root()
        with self._locked(create=False):
            found = self.root.exists()
            if self.relay.stop():
                self._progress("stopped the relay")
                found = True
            for site in self.sites.values():
                if site.stop():
                    self._progress(f"stopped the private site {site.name}")
                    found = True
            if self.root.exists():
                shutil.rmtree(self.root)
                self._progress(f"removed {self.root}")
            return found

    def publish(self, name: str, port: int, site: str, address: str, to_port: int) -> bool:
        """Make ``address:to_port`` of a site reachable on the machine's 127.0.0.1, ``port``; False if it was.

        Raises:
            Conflict: the port is taken (``port-taken``).
            NotFound: there is no such site.
            Unavailable: the laboratory does not run.
        """
        if site not in self.sites:
            raise NotFound(f"the laboratory has no site {site}", field="site", known=sorted(self.sites))
        return self.relay.add(Route(name, HOST, port, site, to_port, address))

    def status(self) -> dict[str, Any]:
        """Return what there is; never changes anything."""
        return self._describe(None)

    def _describe(self, kind: Accelerator | None) -> dict[str, Any]:
        running = {name: site.init() is not None for name, site in self.sites.items()}
        guests = {}
        if running["alpha"]:
            network = app.NETWORKS["alpha"][0]
            guests = {role: one.describe(network) for role, one in self.guests.items() if one.state() != "missing"}
        return {
            "root": str(self.root),
            "cache": str(self.cache),
            "accelerator": kind,
            "sites": {name: self._describe_site(site, running=running[name]) for name, site in self.sites.items()},
            "guests": guests,
            "relay": {"log": str(self.relay.log), "routes": self.relay.status() if self.relay.processes() else []},
        }

    def _describe_site(self, site: Site, *, running: bool) -> dict[str, Any]:
        return {
            "name": site.name,
            "running": running,
            "uri": site.uri,
            "root": str(site.folder),
            "storage": str(site.storage),
            "python": str(site.python),
            "enter": str(site.enter),
            "networks": [
                {"name": one.name, "bridge": one.bridge, "subnet": one.subnet, "gateway": one.gateway}
                for one in app.NETWORKS[site.name]
            ],
        }

    @contextlib.contextmanager
    def _locked(self, *, create: bool) -> Iterator[None]:
        """Hold the laboratory alone. The lock file is beside the root, which itself comes and goes."""
        lock = self.root.with_name(f".{self.root.name}.lock")
        if create:
            self.root.parent.mkdir(parents=True, exist_ok=True)
        elif not self.root.parent.exists():
            yield
            return
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._progress("waiting for another command on the same laboratory")
                fcntl.flock(fd, fcntl.LOCK_EX)
            self._claim(create=create)
            yield
            if not self.root.exists():
                lock.unlink(missing_ok=True)
        finally:
            os.close(fd)

    def _claim(self, *, create: bool) -> None:
        """Make sure that the root is ours: ``down`` removes it with all that is in it."""
        mark = self.root / _MARK
        if mark.exists() or (not create and not self.root.exists()):
            return
        if self.root.exists() and any(self.root.iterdir()):
            raise Conflict(
                f"{self.root} holds files that are not a laboratory's",
                field="root",
                hint="Choose another --root: this one would be removed by `down`.",
            )
        if not create:
            self.root.rmdir()
            return
        try:
            durable.make_dir(self.root)
            durable.write(mark, b"everything here is removed by: python -m farshore.testing.lab down\n")
        except OSError as error:
            raise Permanent(f"cannot write {self.root}: {error}", field="root") from error

"""Two scripted sites, alpha and beta, with a two-tier plan between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from doubles.control_process import Control, until
from doubles.scripted_site import ScriptedSite, facts

PLAN = """\
name: shop
source_site: alpha
target_site: beta
rpo: {rpo}
machines:
  - name: db
    recovery:
      addresses: {{drill: 10.9.0.10, failover: 10.8.0.10}}
    probes:
      - {{type: tcp, port: 5432, banner: ready}}
  - name: web
    depends_on: [db]
    recovery:
      addresses: {{drill: 10.9.0.11, failover: 10.8.0.11}}
    probes:
      - {{type: http, contains: hello}}
networks:
  - source: lan
    drill: {{subnet: 10.9.0.0/24}}
    failover: dmz
retention: {{count: {count}}}
"""


class TwoSites:
    """A control plane with both sites' nodes at work."""

    def __init__(self, control: Control, folder: Path) -> None:
        self.control = control
        self.alpha_node = control.node(folder, "alpha-1", "alpha", port=9101)
        self.beta_node = control.node(folder, "beta-1", "beta", port=9102)
        self.alpha = ScriptedSite(self.alpha_node, [facts("db"), facts("web")], ["lan"])
        self.beta = ScriptedSite(self.beta_node, [], ["dmz"])

    def start(self) -> TwoSites:
        self.alpha_node.start()
        self.beta_node.start()
        for site in ("alpha", "beta"):
            until(lambda site=site: self.control.ok("GET", f"/sites/{site}")["inventory_at"], f"inventory of {site}")
        return self

    def stop(self) -> None:
        for site in (self.alpha, self.beta):
            for gate in site._gates.values():
                gate.set()
        nodes = (self.alpha_node, self.beta_node)
        for node in nodes:
            node.ask_to_stop()
        for node in nodes:
            node.stop()

    def plan(self, rpo: str = "1h", count: int = 8, **changes: str) -> dict[str, Any]:
        text = PLAN.format(rpo=rpo, count=count)
        for old, new in changes.items():
            text = text.replace(old, new)
        return dict(self.control.ok("PUT", "/plans/shop", {"source": text}))

    def protect(self) -> None:
        self.control.ok("POST", "/plans/shop:protect", {"state": "protected"})
        until(lambda: self.control.ok("GET", "/plans/shop")["state"] == "protected", "the first checkpoints")
        until(lambda: not self.open_cycles(), "the first cycles end")

    def open_cycles(self) -> list[dict[str, Any]]:
        return [cycle for cycle in self.control.ok("GET", "/plans/shop")["cycles"] if cycle["ended_at"] is None]

    def checkpoints(self, machine: str | None = None) -> list[dict[str, Any]]:
        query = f"&machine={machine}" if machine else ""
        return list(self.control.ok("GET", f"/checkpoints?plan=shop{query}")["items"])

    def ended(self, run_id: str, timeout_s: float = 90) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            run = self.control.ok("GET", f"/runs/{run_id}")
            return run if run["ended_at"] else None

        return dict(until(look, f"run {run_id} ends", timeout_s))

    def replicate(self) -> dict[str, Any]:
        return self.ended(self.control.ok("POST", "/plans/shop:replicate", {})["run"]["run_id"])


@contextmanager
def two_sites(control: Control, folder: Path) -> Iterator[TwoSites]:
    """Start both sites; stop them at the end."""
    sites = TwoSites(control, folder)
    try:
        yield sites.start()
    finally:
        sites.stop()

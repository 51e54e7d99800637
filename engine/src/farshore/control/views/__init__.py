"""Readers: what the records say, in the JSON of the REST interface. Nothing here changes anything."""

from farshore.control.views.history import run, runs
from farshore.control.views.places import node, nodes, site, site_link, site_links, sites
from farshore.control.views.points import checkpoint, checkpoints, retention
from farshore.control.views.protection import has_plan, machine, machines, plan, plans
from farshore.control.views.trail import audit, tokens

__all__ = [
    "audit",
    "checkpoint",
    "checkpoints",
    "has_plan",
    "machine",
    "machines",
    "node",
    "nodes",
    "plan",
    "plans",
    "retention",
    "run",
    "runs",
    "site",
    "site_link",
    "site_links",
    "sites",
    "tokens",
]

"""``farshore linktest``: measures a link, and sizes a node, with the data path that replication uses.

``keys`` makes what two ends need to trust each other, ``serve`` is a source node, ``pull`` a target node; between them
runs what runs in production, over disks that are named by their paths.
"""

from farshore.cli.local.linktest.commands import app

__all__ = ["app"]

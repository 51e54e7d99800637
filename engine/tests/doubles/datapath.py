"""Two sites of files and the processes between them: see :mod:`farshore.testing.sites`."""

from farshore.testing.sites import DEADLINE_S, Child, Sites, sites

__all__ = ["DEADLINE_S", "Child", "Sites", "sites"]

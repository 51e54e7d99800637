"""A laboratory on one machine: two private hypervisor sites, ``alpha`` and ``beta``, and a two-tier application.

>>> lab = Lab(Path("build/lab"), Path(".cache/lab"))        # doctest: +SKIP
>>> facts = lab.up()                                        # doctest: +SKIP
>>> lab.alpha.run("ip", "address")                          # doctest: +SKIP
>>> lab.down()                                              # doctest: +SKIP
"""

from farshore.testing.lab.lab import Lab

__all__ = ["Lab"]

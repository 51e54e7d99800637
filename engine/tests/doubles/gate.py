"""A TCP forwarder with a gate: see :mod:`farshore.testing.gate`."""

from farshore.testing.gate import Gate

__all__ = ["Gate"]

"""The tools that are compared, all behind one interface: see :mod:`benchmarks.peers.base`."""

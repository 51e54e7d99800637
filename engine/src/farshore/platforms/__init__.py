"""Platforms behind one contract; each package knows one of them and no other."""

"""How much may be in flight. Pure: events and ``now`` in, grants out."""

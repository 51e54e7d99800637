"""Frames and connections between two nodes; see docs/internals/protocol.md."""

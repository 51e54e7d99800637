"""Probes: what proves that a recovered machine serves.

What a guest answers is evidence, never trusted: it is cut, cleaned of control characters, and neither parsed further
nor followed anywhere.
"""

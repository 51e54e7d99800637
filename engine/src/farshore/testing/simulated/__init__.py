"""Recoveries at scale: a real control plane and real nodes before a simulated provider, and an oracle that judges."""

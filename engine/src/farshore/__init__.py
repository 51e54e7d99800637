"""Farshore: replication, checkpoints and recovery of virtual machines across sites."""

__version__ = "0.1.0"

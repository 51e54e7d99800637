"""Ranges, descriptors and digests of disks. Pure: no I/O, no clock, no randomness."""

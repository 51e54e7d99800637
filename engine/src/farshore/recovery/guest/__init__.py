"""Guests looked into and changed while they are off: by a process of its own for each, ``python -m`` this package.

A guest's disks are data from outside. They are parsed in Python and written by tools that run in user space where there
are such; the kernel mounts one only where nothing else can write it. See docs/adr/0008-guests-that-are-off.md.
"""

"""Value types and schemas that every part of the house shares. Pure: no I/O, no clock, no randomness."""

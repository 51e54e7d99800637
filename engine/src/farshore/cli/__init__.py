"""The command line: ``farshore``."""

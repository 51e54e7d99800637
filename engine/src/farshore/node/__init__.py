"""The node: executes the tasks of its site, decides nothing."""

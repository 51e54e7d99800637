"""The way of the data: source service, one disk's cycle, a group's cycle, and what follows a crash."""

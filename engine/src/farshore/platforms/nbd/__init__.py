"""Network block devices: the one client of the engine, and the daemon that exports images to it."""

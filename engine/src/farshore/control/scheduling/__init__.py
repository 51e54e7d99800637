"""When cycles run and how each is driven; all state in rows, so that a restarted control plane goes on."""

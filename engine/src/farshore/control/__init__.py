"""The control plane: it decides and records, and never touches a disk, a hypervisor or a guest."""

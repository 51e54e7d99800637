"""Platform ``kvm``: libvirt and QEMU."""

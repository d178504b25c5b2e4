"""QEMU as a VMM: with KVM where it works, else with TCG, QEMU's own translator."""

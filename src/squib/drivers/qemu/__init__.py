"""The QEMU driver.

Guests run with KVM if it works, else with TCG, QEMU's emulation.
"""

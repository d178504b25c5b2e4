"""What only a guest on Firecracker has."""

import pytest

from squib import VM

pytestmark = pytest.mark.nested


@pytest.fixture
def guest(shared_vm: VM) -> VM:
    if shared_vm.info.driver != "firecracker":
        pytest.skip("the VM runs on another driver")
    return shared_vm


def test_its_kernel_draws_entropy_from_the_vmm(guest: VM) -> None:
    assert "virtio_rng" in guest.run(["cat", "/sys/class/misc/hw_random/rng_available"], check=True).output


def test_its_kernel_can_give_memory_back(guest: VM) -> None:
    assert guest.run("ls -d /sys/bus/virtio/drivers/virtio_balloon/virtio*", check=True).output

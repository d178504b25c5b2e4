"""The marked tests of `tests/vm` where KVM works: on this host, or in a nested VM (``make test-nested``)."""

"""Fixtures of all tests."""

import signal

import pytest

# A shell has its background jobs ignore these, and what they start inherits it: tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests (``@pytest.mark.anyio``) on asyncio."""
    return "asyncio"

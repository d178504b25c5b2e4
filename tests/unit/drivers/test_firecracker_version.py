"""How versions of Firecracker are read, and which are supported."""

import pytest

from squib.drivers.firecracker.version import MINIMUM_VERSION, Version, check_supported, parse_version, show_version
from squib.errors import InvalidArgument, Unsupported


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.16.1", (1, 16, 1)),
        ("v1.16.1", (1, 16, 1)),
        ("Firecracker v1.10.0\n\n", (1, 10, 0)),
        ("Jailer v1.16.1\n\n", (1, 16, 1)),
        ("Firecracker v1.17.0-dev\n", (1, 17, 0)),
    ],
)
def test_a_version_is_read_as_it_is_written_and_as_the_programs_print_it(text: str, version: Version) -> None:
    assert parse_version(text) == version
    assert parse_version(show_version(version)) == version


@pytest.mark.parametrize("text", ["", "latest", "1.16", "v1", "1.16.1.2", "x1.2.3", "1.2.3x", "9999999.1.1"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no version in"):
        parse_version(text)


def test_a_version_compares_with_the_minimum() -> None:
    assert MINIMUM_VERSION == (1, 10)
    for version in ((1, 10, 0), (1, 16, 1), (2, 0, 0)):
        check_supported(version)
    with pytest.raises(Unsupported, match=r"Firecracker 1\.9\.1 is too old: squib needs 1\.10 or later"):
        check_supported((1, 9, 1))

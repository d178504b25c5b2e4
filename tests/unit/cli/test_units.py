"""Sizes and times, as typed and as shown."""

from datetime import UTC, datetime, timedelta

import pytest

from squib.cli.args import units
from squib.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("512", 512), ("512m", 512), ("512M", 512), ("512mb", 512), ("512MiB", 512), ("1g", 1024), ("10gb", 10240),
        ("1.5g", 1536), ("2t", 2 << 20), ("2048k", 2), ("10 GB", 10240), ("0", 0),
    ],
)  # fmt: skip
def test_sizes(text: str, mib: int) -> None:
    assert units.parse_size_mib(text, flag="--memory") == mib


@pytest.mark.parametrize("text", ["", "x", "-1", "1e3", "512b", "1.3m", "100k", "1gg", "g", "1 0", "0x10", "１", "1\n"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--memory") as caught:
        units.parse_size_mib(text, flag="--memory")
    assert "--memory 512" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("1.5", 1.5), ("500ms", 0.5), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("2d", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration_s(text, flag="--timeout") == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "5x", "5 m", "m", "1h30", "1e3", "inf", "nan", "s5"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--timeout"):
        units.parse_duration_s(text, flag="--timeout")


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (831, "831 B"),
        (1024, "1 KiB"),
        (1023 * 1024, "1.0 MiB"),
        (111755264, "107 MiB"),
        (10 << 30, "10 GiB"),
    ],
)
def test_bytes(count: int, shown: str) -> None:
    assert units.show_bytes(count) == shown


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        ({"seconds": 0}, "0s"),
        ({"seconds": 59}, "59s"),
        ({"minutes": 61}, "1h"),
        ({"days": 3}, "3d"),
        ({"hours": -1}, "0s"),
    ],
)
def test_ages(age: dict[str, int], shown: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert units.show_age(now - timedelta(**age), now) == shown

"""Parse and show sizes and times as people type and read them."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta

from squib.errors import InvalidArgument

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([kmgt])(?:i?b)?)?", re.IGNORECASE)
_MIB_PER = {"k": 1 / 1024, "m": 1, "g": 1024, "t": 1024 * 1024}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS_PER = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def parse_size_mib(text: str, *, flag: str) -> int:
    """Parse a size in MiB, such as ``512``, ``512m``, ``512mb`` or ``1.5GiB``.

    Units are powers of 1024; the default is MiB.

    Raises `InvalidArgument`, which names ``flag``, for other text and for a fraction of a MiB.
    """
    found = _SIZE.fullmatch(text)
    mib = float(found[1]) * _MIB_PER[(found[2] or "m").lower()] if found else math.nan
    if not mib.is_integer():
        raise InvalidArgument(f"{flag}: invalid size {text!r}", hint=f"use whole MiB: {flag} 512, 512m or 1g")
    return int(mib)


def parse_duration_s(text: str, *, flag: str, max_s: float = math.inf) -> float:
    """Parse a time in seconds, such as ``30``, ``500ms``, ``5m`` or ``1h30m``.

    The default unit is seconds.

    Raises `InvalidArgument`, which names ``flag``, for other text and for more than ``max_s``.
    """
    seconds = _parse_duration_s(text, flag)
    if seconds > max_s:
        raise InvalidArgument(f"{flag}: {text!r} is too long", hint=f"the longest time is {flag} {max_s:.0f} (seconds)")
    return seconds


def _parse_duration_s(text: str, flag: str) -> float:
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidArgument(f"{flag}: invalid time {text!r}", hint=f"use {flag} 30, 30s, 5m or 1h")
    return sum(float(number) * _SECONDS_PER[unit] for number, unit in parts)


def show_mib(mib: int) -> str:
    """Format a size in MiB: ``512 MiB``, ``10 GiB``."""
    return show_bytes(mib << 20)


def show_bytes(count: int) -> str:
    """Format a size in at most three digits, such as ``61.4 MiB``."""
    value = float(count)
    for unit in _BYTE_UNITS:
        if value < 1000 or unit == _BYTE_UNITS[-1]:
            break
        value /= 1024
    return f"{value:.1f} {unit}" if value < 100 and not value.is_integer() else f"{value:.0f} {unit}"


def show_age(since: datetime, now: datetime) -> str:
    """Format the time since ``since`` in its largest unit, such as ``12m``.

    Units are ``s``, ``m``, ``h`` and ``d``.
    """
    seconds = max(0, int((now - since) / timedelta(seconds=1)))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"

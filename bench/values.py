"""Values that the kernel counts."""

from __future__ import annotations

import re
from pathlib import Path


def read_kib(path: str, field: str) -> int:
    """Return a field of a file in /proc with lines like ``VmRSS: 4711 kB``.

    Raises `ValueError` if the file has no such field.
    """
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(path).read_text(), re.MULTILINE)
    if not found:
        raise ValueError(f"{path} has no {field}")
    return int(found[1])

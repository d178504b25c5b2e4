"""The limits of this process."""

from __future__ import annotations

import resource

_ENOUGH_FILES = 65_536
"""More makes no connection possible, and programs that close every descriptor that there may be take long."""


def raise_file_limit() -> int:
    """Raise the limit of open files to 65,536 or the hard limit; return it.

    The lower of the two counts. A higher limit is not lowered.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _ENOUGH_FILES if soft == resource.RLIM_INFINITY else soft

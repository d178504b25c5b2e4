"""The engine's log file: limited in size and in repetitions of a fault.

A repeated fault has one line a minute.
"""

from __future__ import annotations

import logging
import logging.handlers
import math
import time

from squib.errors import EngineStartFailed
from squib.paths import Home

_LOG_BYTES = 4 << 20
_REPEAT_S = 60.0
_MAX_KEPT = 500


def log_to_file(home: Home) -> None:
    """Write the log to the state directory, to at most two files of 4 MiB.

    Creates the state directory if it is missing. Raises `EngineStartFailed` if one of them cannot be written.
    """
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(home.engine_log, maxBytes=_LOG_BYTES, backupCount=1)
    except OSError as error:
        raise EngineStartFailed(
            f"the engine's log {home.engine_log} cannot be written: {error.strerror}",
            hint="set SQUIB_HOME to a writable directory",
        ) from error
    handler.addFilter(RepeatFilter())
    logging.basicConfig(
        level=logging.INFO, handlers=[handler], format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


class RepeatFilter(logging.Filter):
    """A filter that passes each warning and error at most once a minute.

    The next one that passes says how many were left out.

    Records of squib are equal if their text is equal. Records of other packages, whose text may name a connection, are
    equal if the first line of the format and the type of the exception are equal.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record."""
        if record.levelno < logging.WARNING:
            return True
        key, now = _key(record), time.monotonic()
        last, left_out = self._seen.get(key, (-math.inf, 0))
        if now - last < _REPEAT_S:
            self._seen[key] = (last, left_out + 1)
            return False
        self._seen.pop(key, None)
        self._seen[key] = (now, 0)
        if len(self._seen) > _MAX_KEPT:
            del self._seen[next(iter(self._seen))]
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more since the last such line)", ()
        return True


def _key(record: logging.LogRecord) -> tuple[object, ...]:
    if record.name.startswith("squib"):
        return record.name, record.getMessage()
    kind = record.exc_info[0] if record.exc_info else None
    return record.name, str(record.msg).partition("\n")[0].partition("<")[0], kind
